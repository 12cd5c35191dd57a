"""Win rates, the sign test, and agreement between raters, against published figures and other formulas."""

import math
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta

from tests.support.properties import tries
from toolkit.evaluate.agreement import cohen_kappa, fleiss_kappa, rater_agreement, strength, win_rate
from toolkit.evaluate.statistics import NONE

# Fleiss' kappa of ten subjects by fourteen raters in five categories: 0.210 (the worked example of its article in
# Wikipedia, "Fleiss' kappa").
WORKED = (
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
)  # fmt: skip


def votes_of(counts: Sequence[int]) -> list[str]:
    return [str(category) for category, count in enumerate(counts) for _ in range(count)]


def test_fleiss_kappa_of_the_worked_example() -> None:
    found = fleiss_kappa([votes_of(counts) for counts in WORKED])
    assert found == pytest.approx(0.210, abs=5e-4)


def test_cohen_kappa_of_a_table() -> None:
    """Fifty proposals by two readers: 20 yes yes, 5 yes no, 10 no yes, 15 no no is 0.40."""
    first = ["yes"] * 25 + ["no"] * 25
    second = ["yes"] * 20 + ["no"] * 5 + ["yes"] * 10 + ["no"] * 15
    assert cohen_kappa(first, second) == pytest.approx(0.4)


def test_kappa_is_one_where_all_agree_and_unknown_where_there_is_one_word() -> None:
    assert cohen_kappa(["a", "b"], ["a", "b"]) == pytest.approx(1)
    assert fleiss_kappa([["a"] * 3, ["b"] * 3]) == pytest.approx(1)
    assert cohen_kappa(["a", "a"], ["a", "a"]) is None
    assert fleiss_kappa([["a"] * 3] * 4) is None


@settings(max_examples=tries(100))
@given(st.lists(st.lists(st.sampled_from("abcd"), min_size=3, max_size=3), min_size=2, max_size=12))
def test_kappas_do_not_depend_on_order_or_names(table: list[list[str]]) -> None:
    renamed = [[{"a": "x", "b": "y", "c": "z", "d": "w"}[vote] for vote in reversed(row)] for row in reversed(table)]
    one, other = fleiss_kappa(table), fleiss_kappa(renamed)
    assert one == other or math.isclose(one or 0, other or 0, abs_tol=1e-9)
    if one is not None:
        assert -1 <= one <= 1 + 1e-9


@pytest.mark.parametrize(
    ("better", "worse", "p"),
    [(9, 1, 22 / 1024), (10, 0, 2 / 1024), (5, 5, 1.0), (1, 0, 1.0), (0, 6, 2 / 64), (7, 2, 92 / 512)],
)
def test_the_sign_test_is_exact(better: int, worse: int, p: float) -> None:
    assert win_rate(better, worse)["p"] == pytest.approx(p)


@pytest.mark.parametrize(("better", "worse"), [(9, 1), (10, 0), (0, 10), (13, 12), (1, 0)])
def test_the_interval_is_clopper_and_pearson_s(better: int, worse: int) -> None:
    found = win_rate(better, worse)
    low = beta.ppf(0.025, better, worse + 1) if better else 0
    high = beta.ppf(0.975, better + 1, worse) if worse else 1
    assert (found["low"], found["high"]) == pytest.approx((low, high))
    assert found["low"] <= found["win_rate"] <= found["high"]


def test_a_difference_is_shown_only_where_the_corrected_p_is_small() -> None:
    assert win_rate(9, 1)["verdict"] == "better" and win_rate(1, 9)["verdict"] == "worse"
    assert win_rate(9, 1, pairs=2)["p_corrected"] == pytest.approx(44 / 1024)
    assert win_rate(8, 1, pairs=2)["verdict"] == NONE  # 0.039 alone, 0.078 as one of two
    assert win_rate(8, 1)["verdict"] == "better"


def test_nothing_decided_has_no_rate() -> None:
    found = win_rate(0, 0)
    assert found["verdict"] == NONE
    assert {found[name] for name in ("win_rate", "low", "high", "p", "p_corrected")} == {None}


def test_agreement_is_of_the_items_that_all_have_voted_on() -> None:
    votes = {"Ada": {1: "better", 2: "worse", 3: "same", 9: "same"}, "Ben": {1: "better", 2: "worse", 3: "worse"}}
    found = rater_agreement(votes)
    assert (found["raters"], found["items"], found["method"]) == (2, 3, "Cohen")
    assert found["observed"] == pytest.approx(2 / 3)
    assert found["kappa"] == pytest.approx(cohen_kappa(["better", "worse", "same"], ["better", "worse", "worse"]))
    third = rater_agreement({**votes, "Cem": {1: "better", 2: "worse", 4: "same"}})
    assert (third["raters"], third["items"], third["method"], third["kappa"]) == (3, 2, "Fleiss", pytest.approx(1))


@pytest.mark.parametrize(
    ("votes", "items", "observed"),
    [
        ({}, 0, None),
        ({"Ada": {1: "better"}}, 1, None),
        ({"Ada": {1: "better"}, "Ben": {2: "better"}}, 0, None),
        ({"Ada": {1: "better"}, "Ben": {1: "better"}}, 1, 1.0),
    ],
)
def test_agreement_that_is_unknown_has_no_kappa(
    votes: dict[str, dict[int, str]], items: int, observed: float | None
) -> None:
    found = rater_agreement(votes)
    assert (found["items"], found["observed"], found["kappa"], found["method"]) == (items, observed, None, None)


@pytest.mark.parametrize(
    ("kappa", "word"),
    [(-0.1, "poor"), (0, "slight"), (0.21, "fair"), (0.5, "moderate"), (0.8, "substantial"), (1, "almost perfect")],
)
def test_a_kappa_has_a_word(kappa: float, word: str) -> None:
    assert strength(kappa) == word
