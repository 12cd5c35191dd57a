"""A verdict says no more than was measured: of votes, and of an evaluation of another model."""

from typing import Any

import pytest

from tests.support import reported
from toolkit.core.manifest import read_manifest, write_manifest
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
    assert found.mark == "open" and found.answer.startswith("Of the model as it was: ")


def test_base_and_trained_model_alone_are_no_longer_judged_after_another_training(run: reported.Reported) -> None:
    run.evaluation["systems"] = run.evaluation["systems"][:2]
    manifest = read_manifest(run.folder)
    adapter = manifest.stages["train"].outputs
    manifest.stages["evaluate"] = manifest.stages["export"].model_copy(update={"inputs": adapter, "outputs": []})
    write_manifest(run.folder, manifest)
    assert answered(run, "Is it better than its base?").answer.startswith("Better in loss on the reference answers")
    manifest.stages["train"].outputs = [adapter[0].model_copy(update={"sha256": "ab" * 32}), *adapter[1:]]
    write_manifest(run.folder, manifest)
    found = answered(run, "Is it better than its base?")
    assert "by the loss on held-out answers alone" in found.answer  # the evaluation has no part in it
