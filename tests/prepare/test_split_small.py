"""Few questions: no split stays empty where it need not, and what is advised was tried."""

import hashlib
import itertools
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.core.run_folder import SPLITS
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.columns import Columns, ReadTable
from toolkit.prepare.division import Division, Rows, divide
from toolkit.prepare.groups import reworded, with_groups
from toolkit.prepare.split import asked, leaked, split, wanted_splits
from toolkit.prepare.table import Table


def record(number: int, question: str, instruction: str = "Explain:", answer: str = "") -> Record:
    answer = answer or f"answer {number}"
    return Record(str(number), number, number, instruction, question, answer, normalise(question))


def groups(sizes: list[int]) -> list[Record]:
    questions = [f"question {group}" for group, size in enumerate(sizes) for _ in range(size)]
    return [record(number, question) for number, question in enumerate(questions, 1)]


def former_split(records: list[Record], settings: DataSettings) -> dict[str, list[int]]:
    """The split as it was before empty splits were filled: it must not change where it left none empty."""
    sizes = Counter(record.normalised for record in records)
    room = {"test": round(settings.test * len(records)), "val": round(settings.val * len(records))}
    side = {}
    for text in sorted(sizes, key=lambda text: hashlib.sha256(f"{settings.seed}:{text}".encode()).digest()):
        side[text] = "train"
        for name in ("test", "val"):
            if room[name] > 0 and sizes[text] <= 2 * room[name]:
                side[text], room[name] = name, room[name] - sizes[text]
                break
    return {name: [r.number for r in records if side[r.normalised] == name] for name in SPLITS}


@given(
    sizes=st.lists(st.sampled_from([1, 1, 1, 2, 3, 8, 40]), min_size=1, max_size=8),
    val=st.sampled_from([0.0, 0.05, 0.1, 0.45]),
    test=st.sampled_from([0.05, 0.1, 0.3, 0.5]),
    seed=st.integers(0, 50),
)
def test_a_split_is_found_where_there_is_one(sizes: list[int], val: float, test: float, seed: int) -> None:
    """Every way to give each question a split is tried: if one leaves none empty, ours leaves none empty either."""
    settings = DataSettings(val=val, test=test, seed=seed)
    rows = groups(sizes)
    wanted = set(wanted_splits(settings))
    possible = any(set(sides) >= wanted for sides in itertools.product(sorted(wanted), repeat=len(sizes)))
    former = former_split(rows, settings)
    if not possible:
        with pytest.raises(ToolkitError, match=r"leaves (train|val|test) empty"):
            split(rows, settings)
        return
    found = {name: [r.number for r in side] for name, side in split(rows, settings).items()}
    assert sorted(number for numbers in found.values() for number in numbers) == [r.number for r in rows]
    assert all(found[name] for name in wanted) and leaked(asked(split(rows, settings))) == 0
    if all(former[name] for name in wanted):
        assert found == former
    assert found == {name: [r.number for r in side] for name, side in split(rows[::-1], settings).items()} or all(
        sorted(found[name]) == sorted(r.number for r in side) for name, side in split(rows[::-1], settings).items()
    )


@given(
    count=st.integers(1, 12),
    val=st.sampled_from([0.0, 0.1, 0.45, 0.8]),
    test=st.sampled_from([0.1, 0.19, 0.5]),
)
def test_random_fills_every_split_where_there_are_rows(count: int, val: float, test: float) -> None:
    if val + test >= 1:
        return
    settings = DataSettings(split="random", val=val, test=test)
    rows = groups([count])
    wanted = wanted_splits(settings)
    if count < len(wanted):
        with pytest.raises(ToolkitError, match="empty"):
            split(rows, settings)
        return
    found = split(rows, settings)
    assert all(found[name] for name in wanted)
    assert sorted(r.number for side in found.values() for r in side) == list(range(1, count + 1))


def test_the_largest_group_stays_in_training() -> None:
    """505 rows of 6 questions, 500 of them of one: val and test share the other five."""
    found = split(groups([500, 1, 1, 1, 1, 1]), DataSettings())
    assert len(found["train"]) == 500 and found["val"] and found["test"]


def division(records: list[Record], *overrides: str) -> Division:
    read = ReadTable(Table(Path("x.csv"), [], []), Columns("question", "answer", None, None), [])
    rows = Rows([read], records, [])
    return divide(rows, build({}, overrides), lambda some: (some, []))


@pytest.mark.parametrize(
    ("records", "settings"),
    [
        (groups([30]), []),
        (groups([20, 10]), []),
        (groups([2]), []),
        (groups([1, 1]), ["data.val=0.3"]),
        (groups([40]), ["data.val=0"]),
        (groups([1, 1]), ["data.split=random"]),
    ],
)
def test_what_is_advised_works_and_gives_what_was_said(records: list[Record], settings: list[str]) -> None:
    with pytest.raises(ToolkitError) as caught:
        division(records, *settings)
    options = re.search(r"`(--set [^`]+)`", caught.value.hint)
    assert options, caught.value.hint
    advised = re.findall(r"--set (\S+)", options[1])
    sizes = {name: len(side) for name, side in division(records, *settings, *advised).splits.items()}
    assert ", ".join(f"{name} {count}" for name, count in sizes.items()) in caught.value.hint


@pytest.mark.parametrize(("records", "random"), [(groups([30]), True), (groups([20, 10]), False)])
def test_random_is_named_only_where_nothing_else_works(records: list[Record], random: bool) -> None:
    with pytest.raises(ToolkitError) as caught:
        division(records)
    assert ("data.split=random` is the only way" in caught.value.hint) is random
    assert ("data.val=0`" in caught.value.hint) is not random


def test_copies_of_one_record_are_not_to_be_split_at_random() -> None:
    with pytest.raises(ToolkitError) as caught:
        division([record(number, "q", answer="a") for number in range(30)])
    assert "random" not in caught.value.hint and "at least 3 are needed" in caught.value.hint


@pytest.mark.parametrize(
    ("rows", "count"),
    [
        ([("Explain:", f"q{n}") for n in range(6)], 6),
        ([("Explain:", "What helps?")] * 6, 1),
        ([(f"Explain disease {n}", "Answer in one line.") for n in range(6)], 6),
        ([(f"Explain disease {n}", "Answer in one line.") for n in range(5)] + [("Explain disease 9", "Briefly.")], 6),
        ([(f"Explain to {who}", f"disease {n}") for n in range(3) for who in ("a child", "a nurse")], 6),
        ([("Translate this", f"text {n}") for n in range(4)] + [("Sum this up", f"text {n}") for n in range(2)], 6),
        ([("Explain:", "Q one?"), ("Explain:", "q ONE"), ("Explain:", "q two")], 2),
    ],
)
def test_instruction_and_input_together_are_the_question(rows: list[tuple[str, str]], count: int) -> None:
    records = [record(number, question, instruction) for number, (instruction, question) in enumerate(rows, 1)]
    named = with_groups(records, "Explain:")
    assert len({each.normalised for each in named}) == count
    asked = {(normalise(instruction), normalise(question)) for instruction, question in rows}
    assert count == len(asked)
    if {instruction for instruction, _ in rows} == {"Explain:"}:
        assert named == records  # the groups of plain questions are their questions, whose hashes decide


def test_a_row_more_moves_no_other_row() -> None:
    records = [record(number, f"disease {number}", "Explain to a nurse") for number in range(50)]
    more = [*records, record(99, "disease 3", "Explain to a child")]
    settings = DataSettings()
    before, after = (split(with_groups(some, "Explain:"), settings) for some in (records, more))
    for name in SPLITS:
        assert {r.number for r in before[name]} <= {r.number for r in after[name]} | {99}


def test_questions_under_another_instruction_are_counted() -> None:
    pairs = [(f"Explain to {who}", f"disease {n}") for n in range(30) for who in ("a child", "a nurse")]
    records = with_groups([record(n, question, how) for n, (how, question) in enumerate(pairs)], "Explain:")
    splits = split(records, DataSettings())
    trained = {each.question for each in splits["train"]}
    held_out = [*splits["val"], *splits["test"]]
    assert reworded(splits) == sum(each.question in trained for each in held_out) > 0
    plain = split(groups([1] * 30), DataSettings())
    assert reworded(plain) == 0


def test_the_settings_of_val_decide_what_must_hold_rows() -> None:
    assert wanted_splits(DataSettings(val=0.0)) == ["train", "test"]
    sizes: dict[str, Any] = {name: len(side) for name, side in split(groups([5, 1]), DataSettings(val=0.0)).items()}
    assert sizes == {"train": 5, "val": 0, "test": 1}
