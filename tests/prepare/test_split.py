import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.split import Splits, drop_duplicates, leaked, near_duplicates, split


def records(questions: list[str]) -> list[Record]:
    return [
        Record(str(n), n, n, "Explain:", question, f"answer {n}", normalise(question))
        for n, question in enumerate(questions, 1)
    ]


def rows_of(splits: Splits) -> dict[str, list[int]]:
    return {name: [record.number for record in side] for name, side in splits.items()}


def test_duplicates_are_the_same_in_everything() -> None:
    one, two, three = records(["q", "q", "Q"])
    twin = Record("9", 9, 9, one.instruction, one.question, one.answer, one.normalised)
    other = Record("10", 10, 10, "Do", one.question, one.answer, one.normalised)
    assert drop_duplicates([one, two, three, twin, other]) == ([one, two, three, other], 1)


@given(
    groups=st.lists(st.integers(1, 6), min_size=60, max_size=120),
    val=st.sampled_from([0.0, 0.1, 0.2]),
    test=st.sampled_from([0.1, 0.3]),
    seed=st.integers(0, 1000),
)
def test_grouped_split(groups: list[int], val: float, test: float, seed: int) -> None:
    settings = DataSettings(val=val, test=test, seed=seed)
    rows = records([f"question {group}?" for group, size in enumerate(groups) for _ in range(size)])
    splits = split(rows, settings)
    assert sorted(number for side in rows_of(splits).values() for number in side) == list(range(1, len(rows) + 1))
    assert leaked(splits) == 0
    assert len({r.normalised for side in splits.values() for r in side}) == len(groups)
    for name, share in (("val", val), ("test", test)):
        assert abs(len(splits[name]) - share * len(rows)) <= max(groups) / 2 + 0.5
    shuffled = list(rows)
    random.Random(seed).shuffle(shuffled)
    again = split(shuffled, settings)
    assert {name: sorted(numbers) for name, numbers in rows_of(again).items()} == rows_of(splits)


def test_seeds_differ() -> None:
    rows = records([f"question {n}" for n in range(100)])
    first, second = (rows_of(split(rows, DataSettings(seed=seed))) for seed in (1, 2))
    assert first != second and len(first["test"]) == len(second["test"]) == 10


@pytest.mark.parametrize(
    ("val", "test", "count", "sizes"),
    [(0.1, 0.1, 2479, (1983, 248, 248)), (0.0, 0.2, 2479, (1983, 0, 496)), (0.1, 0.2, 10, (7, 1, 2))],
)
def test_random_split_is_scikit_learns(val: float, test: float, count: int, sizes: tuple[int, int, int]) -> None:
    from sklearn.model_selection import train_test_split

    share = round(val + test, 10)
    train, held_out = train_test_split(list(range(count)), test_size=share, random_state=42, shuffle=True)
    splits = rows_of(split(records(["q"] * count), DataSettings(split="random", val=val, test=test)))
    assert [number - 1 for number in splits["train"]] == train
    assert [number - 1 for number in splits["val"] + splits["test"]] == held_out
    assert (len(splits["train"]), len(splits["val"]), len(splits["test"])) == sizes
    order = np.random.RandomState(42).permutation(count)  # a stream that numpy keeps as it is
    assert [number - 1 for number in splits["val"] + splits["test"] + splits["train"]] == order.tolist()


def test_random_split_leaks_and_says_so() -> None:
    splits = split(records([f"q{n // 2}" for n in range(100)]), DataSettings(split="random"))
    halves = [{r.normalised for r in side} for side in splits.values()]
    both = {q for one in halves for q in one if sum(q in side for side in halves) > 1}
    assert leaked(splits) == len(both) > 0


@pytest.mark.parametrize(
    ("questions", "settings", "side"),
    [
        (["q"] * 50, {}, "val"),
        (["q"] * 50, {"val": 0.0}, "test"),
        (["a", "b"], {"val": 0.4, "test": 0.5}, "train"),
        (["a"], {"val": 0.0, "split": "random"}, "train"),
    ],
)
def test_an_empty_split(questions: list[str], settings: dict[str, Any], side: str) -> None:
    with pytest.raises(ToolkitError) as caught:
        split(records(questions), DataSettings(**settings))
    assert f"leaves {side} empty: {len(questions)} usable row" in caught.value.message
    assert f"{side} 0" in caught.value.message


def test_val_may_be_left_out() -> None:
    splits = split(records([f"q{n}" for n in range(10)]), DataSettings(val=0.0))
    assert (len(splits["train"]), splits["val"], len(splits["test"])) == (9, [], 1)


def jaccard(one: str, other: str) -> float:
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b)


@given(
    data=st.lists(
        st.tuples(
            st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join),
            st.sampled_from(["train", "val", "test"]),
        ),
        max_size=40,
    ),
    threshold=st.sampled_from([0.01, 0.3, 0.5, 2 / 3, 0.75, 0.8, 6 / 7, 1.0]),
)
def test_near_duplicates_are_exact(data: list[tuple[str, str]], threshold: float) -> None:
    splits: Splits = {name: records([q for q, side in data if side == name]) for name in ("train", "val", "test")}
    expected = {
        (q, side)
        for q, side in data
        if side != "train"
        and any(side != s and normalise(q) != normalise(o) and jaccard(q, o) >= threshold for o, s in data)
    }
    found = near_duplicates(splits, threshold)
    assert {(normalise(pair.question), pair.split) for pair in found} == {(normalise(q), s) for q, s in expected}
    assert len(found) == len(expected)
    for pair in found:
        assert pair.split != pair.other_split and pair.overlap == jaccard(pair.question, pair.other) >= threshold
