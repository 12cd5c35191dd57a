"""Whether a model has learned anything, from its losses on the same records before and after."""

import math
import random

import numpy as np
import pytest

from toolkit.core.learned import ERRORS, FEWEST, LEAST, compare_losses, warning_of

Parts = list[tuple[float, int]]


def parts_of(losses: list[float], tokens: int = 10) -> Parts:
    """Parts of equally many tokens with these mean losses."""
    return [(loss * tokens, tokens) for loss in losses]


def test_a_loss_that_fell_on_every_record_is_better_although_records_differ_far_more() -> None:
    before = [1.0, 2.0, 4.0, 8.0, 3.0, 5.0]
    found = compare_losses(parts_of(before), parts_of([loss - 0.01 for loss in before]))
    assert found is not None and found.verdict == "better" and found.error == pytest.approx(0, abs=1e-12)
    assert warning_of(found, "6 records", 2e-4) == ""


@pytest.mark.parametrize(
    ("changes", "verdict"),
    [
        ([0.0] * 6, "unmoved"),
        ([-LEAST / 2] * 6, "unmoved"),  # sure, and too small to matter
        ([LEAST / 2] * 6, "unmoved"),
        ([-0.5, 0.5, -0.5, 0.5, -0.5, 0.4], "unmoved"),
        ([0.3, 0.2, 0.4, 0.3, 0.3, 0.1], "worse"),
        ([-0.3, -0.2, -0.4, -0.3, -0.3, -0.1], "better"),
        ([14.0, 13.0, 15.0], "worse"),  # too few for an error
        ([-0.2], "better"),
        ([0.2], "worse"),
        ([math.nan, 0.0], "worse"),
        ([math.inf, 0.0], "worse"),
    ],
)
def test_verdicts(changes: list[float], verdict: str) -> None:
    before = [2.0 + place for place in range(len(changes))]
    found = compare_losses(parts_of(before), parts_of([a + b for a, b in zip(before, changes, strict=True)]))
    assert found is not None and found.verdict == verdict
    assert (found.error is None) == (len(changes) < FEWEST)
    assert bool(warning_of(found, "here", None)) == (verdict != "better")


@pytest.mark.slow
def test_the_error_is_that_of_many_drawn_sets_of_records() -> None:
    """The ratio estimator's, against the spread of the mean over 2,000 draws with their own numbers of tokens."""
    random.seed(1)

    def draw() -> tuple[Parts, Parts]:
        counts = [random.randint(5, 60) for _ in range(40)]
        before = [(random.gauss(2.5, 1.0) * count, count) for count in counts]
        return before, [(loss + random.gauss(-0.05, 0.2) * count, count) for loss, count in before]

    found = [compare_losses(*draw()) for _ in range(2000)]
    changes = [one.after - one.before for one in found if one]
    errors = [one.error for one in found if one and one.error]
    assert np.mean(errors) == pytest.approx(np.std(changes), rel=0.1)


def test_a_model_that_did_not_change_is_called_better_in_few_of_many_draws() -> None:
    random.seed(2)
    wrong = 0
    for _ in range(1000):
        before = [2.0] * 30
        found = compare_losses(parts_of(before), parts_of([loss + random.gauss(0, 0.3) for loss in before]))
        assert found is not None and found.error is not None
        wrong += found.verdict == "better"
        assert (found.verdict == "unmoved") == (abs(found.after - found.before) <= max(LEAST, ERRORS * found.error))
    assert wrong < 50


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], []),
        ([(1.0, 5)], []),
        ([(1.0, 5)], [(1.0, 6)]),
        ([(1.0, 5), (2.0, 5)], [(1.0, 5)]),
        ([(0.0, 0)], [(0.0, 0)]),
    ],
)
def test_other_records_are_not_compared(before: Parts, after: Parts) -> None:
    assert compare_losses(before, after) is None
    assert warning_of(None, "nowhere", 1e-4) == ""


def test_what_is_said_names_both_losses_and_what_to_change() -> None:
    worse = compare_losses(parts_of([3.12] * 6), parts_of([17.24] * 6))
    said = warning_of(worse, "6 of 6 held-out records", 0.05)
    assert "3.1200 before training, 17.2400 after" in said and "it is 0.05; 0.0002 is usual" in said
    assert "lower train.learning_rate (it is 0.0002, as usual), or" in warning_of(worse, "here", 2e-4)
    unmoved = compare_losses(parts_of([3.0] * 6), parts_of([3.0] * 6))
    assert "another train.learning_rate (it is 0.0002, as usual)" in warning_of(unmoved, "here", 2e-4)
    assert "another train.learning_rate (0.0002 is usual)" in warning_of(unmoved, "here", None)
    assert "no better than its base" in warning_of(unmoved, "here", 1e-9) and "train.num_train_epochs" in warning_of(
        unmoved, "here", 1e-9
    )
    diverged = compare_losses(parts_of([3.0] * 6), parts_of([math.nan] * 6))
    assert diverged is not None and diverged.figures["after"] is None
