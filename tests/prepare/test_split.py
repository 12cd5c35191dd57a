import random
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.core.run_folder import SPLITS
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.division import Rows, divide, read_rows
from toolkit.prepare.source import Source
from toolkit.prepare.split import Splits, asked, drop_duplicates, leaked, split


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
    kept, dropped = drop_duplicates([one, two, three, twin, other])
    assert [*kept] == [one, two, three, other] and dropped == 1


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
    assert leaked(asked(splits)) == 0
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


@pytest.fixture(scope="module")
def rows(medquad: Path) -> Rows:
    """The real rows, cleaned: how they are split changes none of them."""
    return read_rows([Source(medquad)], build({}, []))


@pytest.mark.parametrize("val", [0.0, 0.1])
def test_random_split_is_the_recipes_row_for_row(val: float, medquad: Path, rows: Rows) -> None:
    """`train_test_split(test_size=0.2, random_state=42, shuffle=True)` of the file; the first held-out rows are val."""
    import pandas
    from sklearn.model_selection import train_test_split

    config = build({}, ["data.split=random", f"data.val={val}", f"data.test={0.2 - val}"])
    splits = divide(rows, config, lambda some: (some, [])).splits
    train, held_out = train_test_split(pandas.read_csv(medquad), test_size=0.2, random_state=42, shuffle=True)
    assert (len(train), len(held_out)) == (1983, 496)
    assert [record.id for record in splits["train"]] == train["AnswerID"].tolist()
    assert [record.id for record in [*splits["val"], *splits["test"]]] == held_out["AnswerID"].tolist()
    assert len(splits["val"]) == (248 if val else 0)


def test_the_split_of_the_judged_answers_stays_as_it_is(rows: Rows) -> None:
    """Who trained yesterday has the same held-out questions tomorrow."""
    config = build({}, [])
    splits = divide(rows, config, lambda some: (some, [])).splits
    numbers = {name: ",".join(str(record.number) for record in some) for name, some in splits.items()}
    assert {name: (len(splits[name]), zlib.crc32(text.encode())) for name, text in numbers.items()} == {
        "train": (1543, 2626270246), "val": (193, 2318667833), "test": (193, 1346129366)
    }  # fmt: skip


def test_random_split_leaks_and_says_so() -> None:
    splits = split(records([f"q{n // 2}" for n in range(100)]), DataSettings(split="random"))
    halves = [{r.normalised for r in side} for side in splits.values()]
    both = {q for one in halves for q in one if sum(q in side for side in halves) > 1}
    assert leaked(asked(splits)) == len(both) > 0


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
    assert [len(splits[name]) for name in SPLITS] == [9, 0, 1]
