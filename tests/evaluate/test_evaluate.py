"""An evaluation asks all systems, compares them, goes on where it was interrupted, and keeps former results."""

import copy as copies
import errno
import json
import math
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.support import scored_models
from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.manifest import Outcome
from toolkit.evaluate import evaluate, held_out, pairs_of
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.evaluation import read_evaluation
from toolkit.evaluate.journal import Journal, read_journal
from toolkit.evaluate.preview import foreseen, foreseen_table
from toolkit.evaluate.statistics import NONE
from toolkit.evaluate.summary import evaluation_text
from toolkit.evaluate.systems import Answer, System

NAMES = ["base", "trained", "F32", "F16", "Q8_0"]
TRAINING = [("When?", "At night the fever of a child may rise, and water helps when rest does not."), ("How?", "Rest.")]


def settings(made: scored_models.World, **changes: Any) -> Config:
    values: dict[str, Any] = {"questions": 4, "answer_tokens": 6, **changes}
    return made.config.model_copy(update={"evaluate": made.config.evaluate.model_copy(update=values)})


def copy(made: scored_models.World, folder: Path) -> scored_models.World:
    run = scored_models.copy(made, folder)
    scored_models.write_rows(run.folder.split_file("train"), TRAINING)
    return run


def evaluated(run: scored_models.World, **changes: Any) -> Outcome:
    force = bool(changes.pop("force", False))
    return evaluate(settings(run, **changes), run.folder, run.base, run.manifest(), force=force)


@pytest.fixture(scope="module")
def done(made: scored_models.World, tmp_path_factory: pytest.TempPathFactory) -> tuple[scored_models.World, Outcome]:
    run = copy(made, tmp_path_factory.mktemp("done"))
    return run, evaluated(run)


def floats(value: Any) -> Iterator[float]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from floats(inner)
    elif isinstance(value, float):
        yield value


def test_all_systems_answer_all_questions(done: tuple[scored_models.World, Outcome]) -> None:
    run, outcome = done
    found = read_evaluation(run.folder)
    held = found["held_out"]
    assert outcome.outputs == [run.folder.evaluation]
    assert [one["name"] for one in found["systems"]] == NAMES == [*held["systems"]]
    assert (held["rows"], held["questions"], held["answer_tokens"]) == (6, 4, 6)
    assert [one["row"] for one in held["answers"]] == [10, 11, 13, 14]
    for one in held["answers"]:
        assert [*one["answers"]] == NAMES and one["reference"] == dict(scored_models.ROWS)[one["question"]]
        assert one["answers"]["F32"] == one["answers"]["trained"]
    for system in found["systems"]:
        assert system["seconds"] > 0 and system["skipped"] == "" and system["device"]
        if system["kind"] == "gguf":
            assert system["sha256"] == sha256_of(run.folder.gguf(system["name"]))
            assert system["file"] == f"gguf/tiny-{system['name']}.gguf"
    assert all(math.isfinite(value) for value in floats(found)) and found["versions"]["sacrebleu"]
    assert len(read_journal(run.folder.evaluated)) == 5 * 2 * 4


def test_means_are_those_of_the_rows(done: tuple[scored_models.World, Outcome]) -> None:
    held = read_evaluation(done[0].folder)["held_out"]
    for name, one in held["systems"].items():
        rows = [row["answers"][name] for row in held["answers"]]
        for measure in ("chrf", "rouge_l", "tokens"):
            assert one[measure]["mean"] == pytest.approx(sum(row[measure] for row in rows) / 4)
            assert one[measure]["low"] <= one[measure]["mean"] <= one[measure]["high"] and one[measure]["n"] == 4
        assert one["ended"]["mean"] == sum(row["ended"] for row in rows) / 4
    nll = {name: one["nll"]["mean"] for name, one in held["systems"].items()}
    assert nll["F32"] == pytest.approx(nll["trained"], rel=1e-4) and nll["base"] != pytest.approx(nll["trained"])


def test_pairs_are_compared_and_corrected_together(done: tuple[scored_models.World, Outcome]) -> None:
    found = read_evaluation(done[0].folder)
    compared = found["held_out"]["comparisons"]
    pairs = [("base", "trained"), ("trained", "F32"), ("trained", "F16"), ("trained", "Q8_0"), ("base", "Q8_0")]
    assert [(one["a"], one["b"], one["measure"]) for one in compared] == [
        (*pair, measure) for pair in pairs for measure in ("chrf", "rouge_l", "nll")
    ]
    assert found["comparisons_made"] == len(compared) == 15
    means = {name: one["nll"]["mean"] for name, one in found["held_out"]["systems"].items()}
    for one in compared:
        assert one["p"] >= 0.125 and one["verdict"] == NONE  # four rows prove nothing
        if one["measure"] == "nll":
            assert one["difference"] == pytest.approx(means[one["b"]] - means[one["a"]], abs=1e-9)
    same = [one for one in found["held_out"]["identical"] if (one["a"], one["b"]) == ("trained", "F32")]
    assert same == [{"a": "trained", "b": "F32", "share": 1.0}] and len(found["held_out"]["identical"]) == 10


def test_the_summary_says_what_was_found_in_words(done: tuple[scored_models.World, Outcome]) -> None:
    text = evaluation_text(done[1].figures)
    assert "4 of 6 held-out questions, at most 6 tokens each" in text
    assert f"trained against base: {NONE} in chrF against the reference, ROUGE-L against the reference " in text
    assert "and loss on the reference answers" in text
    assert "words in a row from a training answer" in text and "15 comparisons (Holm)" in text


@pytest.mark.parametrize(
    ("longest", "said"), [(0, "0 words in a row"), (1, "1 word in a row"), (2, "2 words in a row")]
)
def test_a_copy_of_one_word_is_one_word(done: tuple[scored_models.World, Outcome], longest: int, said: str) -> None:
    figures = copies.deepcopy(done[1].figures)
    figures["held_out"]["systems"]["trained"]["copied"]["longest"] = longest
    assert f"no answer of trained has more than {said} from a training answer" in evaluation_text(figures)


def test_a_difference_is_said_with_its_size() -> None:
    one = {"measure": "nll", "a": "base", "b": "trained", "difference": -0.25, "low": -0.3, "high": -0.2}
    found = {
        "chrf": {**one, "measure": "chrf", "verdict": NONE},
        "nll": {**one, "p_corrected": 1e-5, "verdict": "better"},
    }
    from toolkit.evaluate.summary import sentence

    assert sentence("base", "trained", [*found.values()]) == (
        "trained against base: better in loss on the reference answers (difference -0.25 nats per token, "
        "95 % -0.3 to -0.2, p < 0.001); no difference can be shown in chrF against the reference"
    )


@pytest.mark.slow
def test_an_interrupted_evaluation_goes_on_with_the_next_item(
    made: scored_models.World,
    done: tuple[scored_models.World, Outcome],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run, asked = copy(made, tmp_path), []
    put = Journal.put

    def interrupted(self: Journal, key: str, value: Any) -> None:
        if len(self.values) == 13:
            raise KeyboardInterrupt
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run)
    assert run.folder.evaluated.read_bytes().count(b"\n") == 13 and not run.folder.evaluation.exists()

    def counted(self: Journal, key: str, value: Any) -> None:
        asked.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", counted)
    evaluated(run)
    assert len(asked) == len({*asked}) == 40 - 13
    first, second = read_evaluation(done[0].folder), read_evaluation(run.folder)
    assert first["held_out"] == second["held_out"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, int]]:
    """What is asked from now on: each system that is loaded, and how many items have a new result then."""
    found: list[tuple[str, int]] = []
    put, load = Journal.put, Bench._load

    def counted(self: Journal, key: str, value: Any) -> None:
        found[-1] = (found[-1][0], found[-1][1] + 1)
        put(self, key, value)

    def loaded(self: Bench, system: System, *more: Any) -> Any:
        found.append((system.name, 0))
        return load(self, system, *more)

    monkeypatch.setattr(Journal, "put", counted)
    monkeypatch.setattr(Bench, "_load", loaded)
    return found


def make_exam(path: Path, degrees: Sequence[int]) -> Path:
    rows = [
        {"question": f"What helps against a fever of {one}?", "choices": ["Rest", "Noise", "Salt"], "answer": "Rest"}
        for one in degrees
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.slow
def test_only_what_is_new_is_asked(
    done: tuple[scored_models.World, Outcome], tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    """Nothing, more questions, an exam, another question in it: each time what stays the same is taken over."""
    run = copy(done[0], tmp_path)
    before = read_evaluation(run.folder)
    evaluated(run)
    assert asked == [] and read_evaluation(run.folder) == before
    evaluated(run, questions=6)
    assert asked == [(name, 2 * 2) for name in NAMES]
    asked.clear()
    exam = make_exam(tmp_path / "exam.jsonl", (38, 39, 40))
    evaluated(run, exam=str(exam))
    assert asked == [(name, 3) for name in NAMES]
    assert read_evaluation(run.folder)["held_out"] == before["held_out"]
    asked.clear()
    make_exam(exam, (38, 39, 41, 42))
    evaluated(run, exam=str(exam), systems=["F16"])
    assert asked == [("F16", 2)] and read_evaluation(run.folder)["choice"][0]["items"] == 4
    asked.clear()
    evaluated(run)  # those that were left out answer as before
    assert asked == []
    evaluated(run, force=True)
    assert asked == [(name, 8) for name in NAMES]


@pytest.mark.slow
def test_what_a_former_model_answered_is_forgotten(
    done: tuple[scored_models.World, Outcome], tmp_path: Path, asked: list[tuple[str, int]]
) -> None:
    run = copy(done[0], tmp_path)
    scored_models.adapter(run.base.folder, run.folder.adapter, seed=2)
    shutil.copyfile(run.folder.gguf("F32"), run.folder.gguf("Q8_0"))
    evaluated(run)
    assert asked == [("trained", 8), ("Q8_0", 8)] and len(read_journal(run.folder.evaluated)) == 40


@pytest.mark.slow
def test_what_other_settings_left_is_not_shown_as_done(
    made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shown = copy(made, tmp_path), []
    put, advance = Journal.put, console.Progress.advance

    def interrupted(self: Journal, key: str, value: Any) -> None:
        if len(self.values) == 7:
            raise KeyboardInterrupt
        put(self, key, value)

    def seen(self: console.Progress, *more: Any) -> None:
        advance(self, *more)
        shown.append((self.done, self.total))

    monkeypatch.setattr(Journal, "put", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, systems=["F16"])
    monkeypatch.setattr(Journal, "put", put)
    monkeypatch.setattr(console.Progress, "advance", seen)
    evaluated(run, systems=["F16"], answer_tokens=5)  # the 4 references are scored already
    assert shown == [(1, 8), (2, 8), (3, 8), (4, 8)]
    assert "left 7 results" in capsys.readouterr().err


@pytest.mark.slow
def test_answers_of_other_files_are_asked_again(
    made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(made, tmp_path)
    put, asked = Journal.put, []

    def broken(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "evaluation.json")

    def counted(self: Journal, key: str, value: Any) -> None:
        asked.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", counted)
    monkeypatch.setattr("toolkit.evaluate.write_evaluation", broken)
    with pytest.raises(OSError):
        evaluated(run, systems=["trained", "F16"])
    assert len(asked) == 16 and run.folder.evaluated.is_file()
    shutil.copyfile(run.folder.gguf("Q8_0"), run.folder.gguf("F16"))
    scored_models.adapter(run.base.folder, run.folder.adapter, seed=2)
    with pytest.raises(OSError):
        evaluated(run, systems=["trained", "F16"])
    assert len(asked) == 32 == len({*asked})
    with pytest.raises(OSError):
        evaluated(run, systems=["trained", "F16"], answer_tokens=5)  # the references are scored already
    assert len(asked) == 40
    with pytest.raises(OSError):
        evaluated(run, systems=["trained", "F16"], answer_tokens=5, force=True)
    assert len(asked) == 56


@pytest.mark.slow
def test_a_file_that_does_not_load_leaves_former_results(made: scored_models.World, tmp_path: Path) -> None:
    run = copy(made, tmp_path)
    evaluated(run, systems=["trained"])
    before = run.folder.evaluation.read_bytes()
    path = run.folder.gguf("F16")
    path.write_bytes(path.read_bytes()[:-20_000])
    with pytest.raises(ToolkitError) as caught:
        evaluated(run)
    assert str(path) in caught.value.message and "write it again" in caught.value.hint
    assert run.folder.evaluation.read_bytes() == before and run.folder.evaluated.is_file()
    path.unlink()
    with pytest.raises(ToolkitError, match="no GGUF file") as caught:
        evaluated(run)
    assert "toolkit export" in caught.value.hint


@pytest.mark.slow
def test_a_system_without_memory_is_skipped_and_the_others_are_asked(
    made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = copy(made, tmp_path)
    monkeypatch.setattr("toolkit.core.hardware.available_memory", lambda: 1_000_000)
    outcome = evaluated(run, systems=["base", "trained", "Q8_0"])
    found = read_evaluation(run.folder)
    assert [bool(one["skipped"]) for one in found["systems"]] == [True, True, False]
    assert found["systems"][0]["seconds"] is None and [*found["held_out"]["systems"]] == ["Q8_0"]
    assert "base was not asked: in transformers it needs" in evaluation_text(outcome.figures)
    with pytest.raises(ToolkitError, match="no system can be asked"):
        evaluated(run, systems=["base"])


def test_an_answer_learned_by_heart_is_found(made: scored_models.World, tmp_path: Path) -> None:
    run = copy(made, tmp_path)
    words = " ".join(f"word{index}" for index in range(40))
    scored_models.write_rows(run.folder.split_file("train"), [*TRAINING, ("Which?", f"Once {words}.")])
    learned = held_out.Found([Answer(f"Well: {words}", 40, True), Answer("Rest.", 2, True)], [1.0, 2.0], 1.0)
    fresh = held_out.Found([Answer("Nothing", 1, False), Answer("Zero", 2, True)], [1.5, 2.5], 1.0)
    form, tokenizer = _format(run)
    _, questions = held_out.read_questions(run.folder, form, tokenizer, 2)
    found = held_out.measures_of(
        run.folder, 6, questions, 64, {"base": fresh, "trained": learned}, [("base", "trained")]
    )
    copied = found["systems"]["trained"]["copied"]
    assert (copied["longest"], copied["row"], copied["text"], copied["median"]) == (40, 12, words, 20.5)
    assert found["systems"]["base"]["copied"]["longest"] == 0
    figures = {"held_out": found, "choice": [], "comparisons_made": 3, "systems": []}
    for one in found["comparisons"]:
        one["p_corrected"] = 1.0
    assert "40 words in a row from the training answer of row 12; of base the longest is 0" in evaluation_text(figures)


def _format(run: scored_models.World) -> Any:
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    form = prompt_format(run.config.prompt)
    return form, load_tokenizer(run.base.folder, form)


def test_pairs_are_those_of_systems_that_answered(made: scored_models.World) -> None:
    assert pairs_of(made.config, ["trained", "F16"]) == [("trained", "F16")]
    assert pairs_of(made.config, ["base", "Q8_0"]) == [("base", "Q8_0")]
    assert pairs_of(made.config, ["base"]) == []


@pytest.mark.slow
def test_a_preview_says_items_tokens_and_time(made: scored_models.World, tmp_path: Path) -> None:
    run = copy(made, tmp_path)
    found = foreseen(settings(run), run.folder, run.base, kept=True)
    assert found["items"] == 5 * 2 * 4 and found["questions"] == 4 and not found["measured_before"]
    assert found["tokens"] > 5 * 4 * 6 and found["seconds"] > 0
    assert "rough estimate" in foreseen_table(found)
    evaluated(run)
    assert foreseen(settings(run), run.folder, run.base, kept=True)["items"] == 0
    found = foreseen(settings(run), run.folder, run.base, kept=True, force=True)
    assert (
        found["items"] == 40
        and found["measured_before"]
        and found["seconds"]
        == pytest.approx(
            read_evaluation(run.folder)["seconds"],
            abs=0.03,  # of five systems, each rounded
        )
    )
    json.dumps(found)
    more = foreseen(settings(run, questions=6), run.folder, run.base, kept=True)
    assert more["items"] == 5 * 2 * 2 and not more["measured_before"] and "rough estimate" in foreseen_table(more)
    streamed = foreseen(settings(run), run.folder, run.base, kept=False, force=True)
    assert streamed["items"] == 3 * 2 * 4 and "piece by piece" in foreseen_table(streamed)


@pytest.mark.slow
def test_an_exam_is_asked_of_all_systems_and_goes_on_with_the_next_item(
    made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, put = copy(made, tmp_path), Journal.put
    asked: list[str] = []
    exam = tmp_path / "exam.jsonl"
    rows = [
        {"question": f"What helps against a fever of {index}?", "choices": ["Rest", "Noise", "Salt"], "answer": "Rest"}
        for index in (38, 39, 40)
    ]
    exam.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def counted(self: Journal, key: str, value: Any) -> None:
        if len(asked) == 9:
            raise KeyboardInterrupt
        asked.append(key)
        put(self, key, value)

    monkeypatch.setattr(Journal, "put", counted)
    changes: dict[str, Any] = {"systems": ["trained", "F16"], "exam": str(exam), "questions": 2}
    with pytest.raises(KeyboardInterrupt):
        evaluated(run, **changes)
    monkeypatch.setattr(Journal, "put", put)
    evaluated(run, **changes)
    found = read_evaluation(run.folder)
    [task] = found["choice"]
    assert task["items"] == 3 and [*task["systems"]] == ["trained", "F16"]
    assert all(one["n"] == 3 and 0 <= one["mean"] <= 1 for one in task["systems"].values())
    [compared] = task["comparisons"]
    assert (compared["a"], compared["b"], compared["measure"]) == ("trained", "F16", task["task"])
    assert found["comparisons_made"] == 4 and compared["verdict"] == NONE

    exam.write_text(json.dumps({**rows[0], "answer": "Water"}) + "\n")
    before = run.folder.evaluation.read_bytes()
    with pytest.raises(ToolkitError) as caught:
        evaluated(run, **changes)
    assert "exam.jsonl" in caught.value.message and run.folder.evaluation.read_bytes() == before
