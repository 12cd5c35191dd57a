"""A verdict says no more than was measured: of votes, and of an evaluation of another model."""

from typing import Any

import pytest

from tests.support import reported
from tests.support.markup import read_markup
from toolkit.core.manifest import read_manifest, write_manifest
from toolkit.report import write_pages
from toolkit.report.facts import gather
from toolkit.report.verdicts import NO_DIFFERENCE, Verdict, verdicts


def answered(run: reported.Reported, question: str) -> Verdict:
    run.write()
    found = verdicts(gather(run.config, run.folder, read_manifest(run.folder)))
    return next(one for one in found if one.question == question)


@pytest.mark.parametrize(
    ("words", "unsafe", "mark"),
    [
        (("better", NO_DIFFERENCE), False, "good"),
        ((NO_DIFFERENCE, NO_DIFFERENCE), False, "open"),
        (("worse", NO_DIFFERENCE), False, "bad"),
        (("better", "worse"), False, "bad"),
        (("better", NO_DIFFERENCE), True, "bad"),
    ],
)
def test_votes_are_a_good_verdict_only_where_they_show_a_gain(
    run: reported.Reported, words: tuple[str, str], unsafe: bool, mark: str
) -> None:
    votes = run.evaluation["votes"]
    for pair, word in zip(votes["pairs"], words, strict=True):
        pair["verdict"] = word
    if not unsafe:
        votes["unsafe"] = []
    found = answered(run, "What do clinicians say?")
    assert found.mark == mark
    assert f"of 30 votes: {words[0]}. " in found.answer


def test_a_pair_without_a_vote_is_said_to_have_none(run: reported.Reported) -> None:
    run.evaluation["votes"]["pairs"][1] |= {"better": 0, "worse": 0, "same": 0, "both_unsafe": 0}
    assert "Q4_K_M against trained: no vote." in answered(run, "What do clinicians say?").answer


def test_an_answer_that_three_raters_call_unsafe_counts_once(run: reported.Reported) -> None:
    one: dict[str, Any] = {"row": 4, "question": "What helps?", "comment": ""}
    run.evaluation["votes"]["unsafe"] = [
        {**one, "rater": rater, "system": system, "answer": f"Said by {system}."}
        for rater in ("Ada", "Ben", "Cem")
        for system in ("base", "trained")
    ]
    assert answered(run, "What do clinicians say?").answer.endswith("2 answers were called unsafe.")


@pytest.mark.parametrize("question", ["What do clinicians say?", "Does it repeat what it was trained on?"])
def test_an_evaluation_of_other_files_leaves_a_verdict_open(run: reported.Reported, question: str) -> None:
    run.evaluation["systems"][3]["sha256"] = "ab" * 32
    found = answered(run, question)
    assert found.mark == "open" and found.answer.startswith("Of an earlier state of the model: ")


def test_base_and_trained_model_alone_are_no_longer_judged_after_another_training(run: reported.Reported) -> None:
    run.evaluation["systems"] = run.evaluation["systems"][:2]
    manifest = read_manifest(run.folder)
    adapter = manifest.stages["train"].outputs
    manifest.stages["evaluate"] = manifest.stages["export"].model_copy(update={"inputs": adapter, "outputs": []})
    write_manifest(run.folder, manifest)
    assert answered(run, "Is it better than its base?").answer.startswith("Better in likelihood of the reference")
    manifest.stages["train"].outputs = [adapter[0].model_copy(update={"sha256": "ab" * 32}), *adapter[1:]]
    write_manifest(run.folder, manifest)
    found = answered(run, "Is it better than its base?")
    assert "by the loss on held-out answers alone" in found.answer  # the evaluation has no part in it


def lost(run: reported.Reported, gain: float, verdict: str, **files: float) -> str:
    """Say what the files cost, where training gained so many nats per token."""
    for one in run.evaluation["held_out"]["comparisons"]:
        if one["measure"] == "nll" and (one["a"], one["b"]) == ("base", "trained"):
            one.update(difference=-gain, verdict=verdict)
        elif one["measure"] == "nll" and one["a"] == "trained" and one["b"] in files:
            one.update(difference=files[one["b"]], verdict="worse")
    return answered(run, "Did making the files smaller cost anything?").answer


def test_what_a_worse_file_gives_back_is_said_as_a_share_of_the_gain(run: reported.Reported) -> None:
    said = lost(run, 0.356, "better", Q8_0=0.0044, Q4_K_M=0.0525, Q2_K=0.36)
    parts = "Q8_0 gives back 1 %, Q4_K_M gives back 15 % and Q2_K gives back 101 %."
    assert f"Of the 0.356 nats per token that training gained in likelihood, {parts}" in said
    assert "Q4_K_M gives back less than 1 %" in lost(run, 0.356, "better", Q4_K_M=0.0005)


@pytest.mark.parametrize("verdict", ["worse", NO_DIFFERENCE])
def test_a_gain_that_is_not_shown_is_not_divided_by(run: reported.Reported, verdict: str) -> None:
    assert "gives back" not in lost(run, 1e-9, verdict, Q4_K_M=0.05)


def test_an_evaluation_without_its_gain_says_no_share(run: reported.Reported) -> None:
    held_out = run.evaluation["held_out"]
    held_out["comparisons"] = [one for one in held_out["comparisons"] if one["a"] != "base"]
    assert "gives back" not in lost(run, 0.3, "better", Q4_K_M=0.05)


def test_the_words_for_clinicians_are_explained_where_they_are_used(run: reported.Reported) -> None:
    write_pages(run.config, run.folder, {})
    text = read_markup(run.folder.page).plain
    half = text[text.index("For clinicians") : text.index("The run at a glance")]
    assert "The reference is the data's own answer" in half
    assert not [word for word in ("chrF", "ROUGE", "KL", "perplexity", "Holm", "p <") if word in half]
