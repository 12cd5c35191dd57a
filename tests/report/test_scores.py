"""A task's scores are written as what they are: a share of right answers, or another mean."""

import pytest

from tests.support import reported
from tests.support.markup import is_rounded, read_markup
from toolkit.report import write_pages


@pytest.mark.parametrize(("metric", "score"), [("bleu", 23.456), ("bits per byte", 1.234), ("f1", 0.5)])
def test_a_score_that_is_no_share_is_no_percentage(run: reported.Reported, metric: str, score: float) -> None:
    task = run.evaluation["choice"][0]
    task["metric"] = metric
    for found in task["systems"].values():
        found.update(mean=score, low=score - 0.1, high=score + 0.1)
    run.write()
    write_pages(run.config, run.folder, dict.fromkeys(reported.STAGES, ""))
    page = read_markup(run.folder.page)
    figures = [one for one in page.figures if one.place.startswith("evaluation.json#/choice/0/systems/")]
    assert len(figures) == 3 * len(reported.SYSTEMS)
    assert all(is_rounded(one) and "%" not in one.written for one in figures)
    assert f"Own exam: {metric}" in page.plain and "share of right answers" not in page.plain
    row = next(line for line in run.folder.model_card.read_text().splitlines() if line.startswith("| Own exam"))
    assert "%" not in row


@pytest.mark.parametrize("metric", ["acc", "acc_norm", "exact_match"])
def test_a_share_of_right_answers_is_a_percentage(run: reported.Reported, metric: str) -> None:
    run.evaluation["choice"][0]["metric"] = metric
    run.write()
    write_pages(run.config, run.folder, dict.fromkeys(reported.STAGES, ""))
    page = read_markup(run.folder.page)
    assert f"Own exam: share of right answers ({metric})" in page.plain
    row = next(line for line in run.folder.model_card.read_text().splitlines() if line.startswith("| Own exam"))
    assert "| 42.50% |" in row


@pytest.mark.parametrize(
    ("agreement", "said"),
    [
        ({"raters": 1, "items": 10}, "One rater: nothing is known about agreement."),
        ({"raters": 3, "items": 10}, "On the questions that all 3 raters share, all said the same"),
        ({"raters": 2, "items": 0}, "Agreement between raters: not measured, since they share no question."),
    ],
)
def test_why_there_is_no_kappa_is_said(run: reported.Reported, agreement: dict[str, int], said: str) -> None:
    run.evaluation["votes"]["agreement"] = {**agreement, "kappa": None, "method": None}
    run.evaluation["judge"]["agreement_with_votes"] = {"kappa": None, "n": 4} if agreement["items"] else None
    run.write()
    write_pages(run.config, run.folder, dict.fromkeys(reported.STAGES, ""))
    text = read_markup(run.folder.page).plain
    assert said in text and "2 of the pairs had no usable answer" in text
    assert ("On the pairs that clinicians decided too, all said the same" in text) == bool(agreement["items"])
    assert ("No pair was also decided by clinicians" in text) != bool(agreement["items"])
