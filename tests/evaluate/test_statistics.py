"""Intervals hold the truth as often as they say, p-values are not smaller than the rows allow, Holm corrects them."""

from typing import Any

import numpy as np
import pytest
from scipy import stats

from toolkit.evaluate import statistics
from toolkit.evaluate.statistics import NONE, compare, correct, mean_of, p_value


def normal(seed: int, mean: float, rows: int = 50) -> list[float]:
    found: list[float] = np.random.default_rng(seed).normal(mean, 1, rows).tolist()
    return found


def test_a_mean_has_an_interval_over_rows() -> None:
    values = normal(1, 3)
    found = mean_of(values)
    low, high = stats.t.interval(0.95, 49, np.mean(values), stats.sem(values))
    assert found["mean"] == pytest.approx(np.mean(values)) and found["n"] == 50
    assert (found["low"], found["high"]) == (pytest.approx(low, abs=0.05), pytest.approx(high, abs=0.05))


def test_one_row_has_no_interval_and_none_has_no_mean() -> None:
    assert mean_of([2.5]) == {"mean": 2.5, "low": None, "high": None, "n": 1}
    assert mean_of([]) == {"mean": None, "low": None, "high": None, "n": 0}
    assert mean_of([2.5, 2.5])["low"] == 2.5


def test_a_share_of_all_is_not_sure() -> None:
    assert mean_of([0.0] * 50)["high"] == 0  # a measure that is 0 everywhere is no share
    found = mean_of([1.0] * 50, share=True)
    assert found["mean"] == found["high"] == 1 and 0.9 < found["low"] < 0.95


def test_the_p_value_is_near_the_t_tests() -> None:
    for seed, mean in ((1, 0.0), (2, 0.2), (3, 0.3), (4, 0.4)):
        values = np.array(normal(seed, mean))
        assert p_value(values) == pytest.approx(stats.ttest_1samp(values, 0).pvalue, rel=0.35, abs=0.002)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [7, 10])
def test_of_few_rows_too_one_in_twenty_is_wrong(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "LEAST", 999)
    monkeypatch.setattr(statistics, "MOST", 999)
    rng, tries = np.random.default_rng(rows), 300
    found = [compare("chrf", "a", "b", [0.0] * rows, rng.normal(0, 1, rows).tolist(), less=False) for _ in range(tries)]
    missed = sum(not one["low"] <= 0 <= one["high"] for one in found)
    shown = sum(one["p"] < 0.05 for one in found)
    assert stats.binomtest(missed, tries, 0.05).pvalue > 0.01  # plain percentiles of 10 rows miss 10 in 100
    assert stats.binomtest(shown, tries, 0.05, "greater").pvalue > 0.01


@pytest.mark.parametrize("rows", [6, 12, 50])
def test_an_interval_without_zero_is_a_p_below_5_in_100(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "MOST", 9_999)
    for mean in np.linspace(0, 1.2, 7).tolist():
        one = compare("chrf", "a", "b", [0.0] * rows, normal(rows, mean, rows), less=False)
        if abs(one["p"] - 0.05) > 0.005:  # resamples are counted, so that the two may differ at the edge
            assert (one["p"] < 0.05) == (not one["low"] <= 0 <= one["high"])


def test_a_paired_difference_is_near_the_paired_t_test_and_that_of_permutations() -> None:
    first, second = normal(1, 3, 12), normal(2, 3.6, 12)
    one = compare("nll", "a", "b", first, second, less=True)
    paired = stats.ttest_rel(second, first)
    low, high = paired.confidence_interval()
    assert (one["low"], one["high"]) == (pytest.approx(low, abs=0.1), pytest.approx(high, abs=0.1))
    permuted = stats.permutation_test(
        (np.array(second), np.array(first)), lambda a, b: np.mean(a - b), permutation_type="samples"
    )
    assert one["p"] == pytest.approx(paired.pvalue, rel=0.3)
    assert one["p"] == pytest.approx(permuted.pvalue, rel=0.3)


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "mean"), [(50, 2.0), (20, 3.0), (2_000, -0.5)])
def test_a_large_difference_stays_sure_among_a_hundred_comparisons(rows: int, mean: float) -> None:
    values = np.array(normal(rows, mean, rows))
    assert p_value(values) < 1e-5  # no resample crosses zero, so that counting them ends at 1e-4
    assert p_value(values) >= 2.0 ** (1 - rows)
    assert p_value(values) == p_value(-values)


def test_few_rows_prove_nothing() -> None:
    assert p_value(np.array([1.0])) == 1
    assert p_value(np.array([1.0, 1.1, 1.2])) == 0.25  # as a sign test of three
    assert p_value(np.array([1.0, 1.1])) > 0.05
    assert p_value(np.zeros(9)) == 1 and p_value(np.array([])) == 1


@pytest.mark.slow
@pytest.mark.parametrize("value", [1.0, 0.1, -1 / 3])
def test_the_p_value_of_equal_differences_is_that_of_their_signs(value: float) -> None:
    assert p_value(np.full(20, value)) == 2.0**-19


def test_the_smaller_is_better_where_it_is_said() -> None:
    worse, better = normal(1, 3), normal(1, 1)
    found = [
        compare("nll", "base", "trained", worse, better, less=True),
        compare("chrf", "base", "trained", worse, better, less=False),
        compare("rouge_l", "base", "trained", worse, worse, less=False),
    ]
    correct(found)
    assert [one["verdict"] for one in found] == ["better", "worse", NONE]
    assert [one["difference"] for one in found] == [pytest.approx(-2), pytest.approx(-2), 0]
    assert NONE == "no difference can be shown"


def test_corrected_p_values_are_holms() -> None:
    found: list[dict[str, Any]] = [
        {"p": p, "difference": 1.0, "less_is_better": False} for p in (0.03, 0.001, 0.04, 0.012)
    ]
    correct(found)
    assert [one["p_corrected"] for one in found] == pytest.approx([0.06, 0.004, 0.06, 0.036])
    assert [one["verdict"] for one in found] == [NONE, "better", NONE, "better"]


def test_a_row_that_was_not_measured_is_left_out_of_the_pairs() -> None:
    found = compare("nll", "a", "b", [1.0, float("nan"), 3.0], [2.0, 2.0, 4.0], less=True)
    assert found["n"] == 2 and found["difference"] == 1


@pytest.mark.slow
def test_the_same_rows_give_the_same_figures() -> None:
    assert mean_of(normal(5, 0)) == mean_of(normal(5, 0))
    first = compare("chrf", "a", "b", normal(1, 0), normal(2, 0), less=False)
    assert first == compare("chrf", "a", "b", normal(1, 0), normal(2, 0), less=False)
