"""Near-duplicates: what is found is what a comparison of all pairs finds, and what is dropped is named."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.rows import clean
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import near, prepare
from toolkit.prepare.clean import Record, Rejection, normalise
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.likeness import Words, distinct_words, slots_of_a_band, with_a_twin
from toolkit.prepare.likeness import jaccard as jaccard_of_words
from toolkit.prepare.near import drop_across, drop_near, near_duplicates
from toolkit.prepare.read import read_table
from toolkit.prepare.split import Splits, asked, leaked
from toolkit.prompt.tokenizer import Tokenizer

SETTINGS = build({}).data
THRESHOLDS = st.sampled_from([0.01, 0.3, 0.5, 2 / 3, 0.75, 0.8, 6 / 7, 1.0])
TEXTS = st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=9).map(" ".join)


def records(rows: list[tuple[str, str]], instruction: str = "Explain:") -> list[Record]:
    return [
        Record(str(n), n, n, instruction, question, answer, normalise(question))
        for n, (question, answer) in enumerate(rows, 1)
    ]


def divided(data: list[tuple[str, str]]) -> Splits:
    named = records(data)
    return {name: [each for each in named if each.answer == name] for name in SPLITS}


def jaccard(one: str, other: str) -> float:
    a, b = set(one.split()), set(other.split())
    return len(a & b) / len(a | b)


DIVIDED = st.lists(st.tuples(TEXTS, st.sampled_from(SPLITS)), max_size=40)


@given(data=DIVIDED, threshold=THRESHOLDS)
def test_near_duplicates_are_exact(data: list[tuple[str, str]], threshold: float) -> None:
    expected = {
        (q, side)
        for q, side in data
        if side != "train"
        and any(side != s and normalise(q) != normalise(o) and jaccard(q, o) >= threshold for o, s in data)
    }
    found = near_duplicates(divided(data), threshold)
    assert {(normalise(pair.question), pair.split) for pair in found} == {(normalise(q), s) for q, s in expected}
    assert len(found) == len(expected)
    for pair in found:
        assert pair.split != pair.other_split and pair.overlap == jaccard(pair.question, pair.other) >= threshold


@given(data=DIVIDED, threshold=THRESHOLDS)
def test_what_would_leak_is_dropped_and_nothing_else(data: list[tuple[str, str]], threshold: float) -> None:
    splits = divided(data)
    kept, dropped = drop_across(splits, threshold)
    assert near_duplicates(kept, threshold) == [] and leaked(asked(kept)) == 0 and [*kept["test"]] == [*splits["test"]]
    by_number = {record.number: record for some in splits.values() for record in some}
    assert sorted([one.number for one in dropped] + [r.number for some in kept.values() for r in some]) == sorted(
        by_number
    )
    for one in dropped:
        assert one.near is not None and one.reason == "near-duplicate"
        row, twin = by_number[one.number], by_number[one.near["row"]]
        assert twin in kept[one.near["split"]] and SPLITS.index(one.near["split"]) > SPLITS.index(row.answer)
        assert one.near["likeness"] == round(jaccard(row.question, twin.question), 4) >= round(threshold, 4)


@given(rows=st.lists(st.tuples(TEXTS, TEXTS), max_size=30), threshold=THRESHOLDS)
def test_the_first_of_rows_that_are_alike_is_kept(rows: list[tuple[str, str]], threshold: float) -> None:
    def alike(one: Record, other: Record) -> float:
        return min(jaccard(one.question, other.question), jaccard(one.answer, other.answer))

    expected: list[Record] = []
    for record in records(rows):
        if all(alike(record, other) < threshold for other in expected):
            expected.append(record)
    kept, dropped = drop_near(records(rows), threshold)
    assert [*kept] == expected
    by_number = {record.number: record for record in records(rows)}
    for one in dropped:
        assert one.near is not None
        twin = by_number[one.near["row"]]
        assert twin in kept and one.near["likeness"] == round(alike(by_number[one.number], twin), 4)


def test_another_answer_and_another_instruction_are_other_rows() -> None:
    question = "What are the signs and symptoms of Noonan syndrome type 1?"
    rows = records([(question, "Short stature and heart defects from birth on."), (question, "See a doctor.")])
    assert [*map(list, drop_near(rows, 0.8))] == [rows, []]
    other = records([(question, rows[0].answer)], "Translate to Portuguese:")
    assert drop_near([*rows, *other], 0.8)[1] == []
    typo = Record(
        "9", 9, 9, "Explain:", f"{question} ", rows[0].answer + " See below.", rows[0].normalised, file="b.csv"
    )
    (dropped,) = drop_near([*rows, typo], 0.8)[1]
    assert dropped == Rejection(
        9, 9, "near-duplicate", f"{typo.question} | {typo.answer}", "0.80 like row 1", file="b.csv",
        near={"row": 1, "likeness": 0.8},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("糖尿病的症状是什么以及如何治疗", "糖尿病的症状是什么以及怎样治疗", True),
        ("糖尿病的症状是什么以及如何治疗", "高血压的原因有哪些", False),
        ("糖尿病の初期症状はどのようなものですか", "糖尿病の初期の症状はどのようなものですか", True),
        ("อาการของโรคเบาหวานคืออะไรและรักษาอย่างไร", "อาการของโรคเบาหวานคืออะไรและรักษายังไง", True),
        ("당뇨병의 증상은 무엇 입니까", "고혈압의 원인은 무엇 입니까", False),
        ("ما هي أعراض مرض السكري عند الأطفال", "ما هي أعراض مرض السكري عند الكبار", True),
    ],
)
def test_scripts_without_spaces_are_compared_by_pairs_of_characters(one: str, other: str, alike: bool) -> None:
    splits: Splits = {"train": records([(one, "a")]), "val": [], "test": records([(other, "b")])}
    assert bool(near_duplicates(splits, 0.6)) is alike


def changed(words: list[str], count: int, rng: random.Random) -> list[str]:
    return [*words[count:], *(f"new{rng.random()}" for _ in range(count))]


@pytest.mark.slow
@pytest.mark.parametrize("threshold", [0.5, 0.8, 0.9])
def test_nearly_all_pairs_at_the_threshold_have_a_twin(threshold: float) -> None:
    """Of 60 words, as many are changed as leave a Jaccard just over the threshold."""
    rng = random.Random(1)
    count = next(n for n in range(60, -1, -1) if (60 - n) / (60 + n) >= threshold)
    firsts = [[f"w{rng.randrange(50_000)}" for _ in range(60)] for _ in range(400)]
    pairs = [text for first in firsts for text in (first, changed(first, count, rng))]
    alone = [[f"w{rng.randrange(50_000)}" for _ in range(60)] for _ in range(1000)]
    found = with_a_twin((frozenset(text) for text in [*pairs, *alone]), threshold)
    assert sum(number < 800 for number in found) >= 0.99 * 800
    assert sum(number >= 800 for number in found) < 20
    assert found == with_a_twin((frozenset(text) for text in [*pairs, *alone]), threshold)


def test_a_higher_threshold_has_longer_bands() -> None:
    lengths = [slots_of_a_band(threshold) for threshold in (0.01, 0.3, 0.5, 0.8, 0.9, 1.0)]
    assert lengths == sorted(lengths) and lengths[3] == 8 and lengths[0] >= 1


@pytest.mark.slow
def test_many_rows_are_searched_by_sketches_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch, medquad: Path
) -> None:
    table = read_table(medquad, wanted_names(SETTINGS))
    rows = clean(table, find_columns(table, SETTINGS), "Explain:")[0][:600]
    exact = [*map(list, drop_near(rows, 0.8))]
    monkeypatch.setattr(near, "EXACT", 100)
    assert [*map(list, drop_near(rows, 0.8))] == exact
    assert len(exact[1]) > 50  # most of them are exact copies


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def prepared(tmp_path: Path, rows: list[dict[str, str]], tokenizer: Tokenizer, *settings: str) -> dict[str, Any]:
    source = tmp_path / "mine.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    folder = RunFolder(tmp_path / "exports/x", "x")
    figures = prepare(build({}, settings), folder, source, tokenizer).figures
    assert figures["kept"] + figures["duplicates"] + figures["rejected"] == figures["rows"]
    assert figures["rejected"] == len(lines(folder.rejected))
    return {**figures, "listed": lines(folder.rejected)}


LONG = "one two three four five six seven eight nine"


@pytest.mark.parametrize("split", ["grouped", "random"])
def test_training_rows_that_nearly_ask_a_held_out_question_are_left_out(
    split: str, tmp_path: Path, tokenizer: Tokenizer
) -> None:
    rows = [{"question": f"{LONG} {n // 2}?", "answer": f"{n}"} for n in range(20)]
    rows += [{"question": f"{n} is another question {n * n}", "answer": f"{n}"} for n in range(80)]
    before = prepared(tmp_path, rows, tokenizer, f"data.split={split}")
    after = prepared(tmp_path, rows, tokenizer, f"data.split={split}", "data.near_duplicates=drop-across")
    assert before["near_duplicates"] > 0 and before["rejected"] == 0
    assert after["near_duplicates"] == after["leaked_questions"] == 0 and after["test"] == before["test"]
    assert after["reasons"] == {"near-duplicate": after["rejected"]} and after["train"] < before["train"]
    for one in after["listed"]:
        assert one["near"]["split"] in ("val", "test") and one["near"]["likeness"] >= 0.8
        assert f"like row {one['near']['row']}, which {one['near']['split']} holds" in one["detail"]


def test_rows_that_nearly_are_an_earlier_one_are_left_out(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"question": f"what helps against disease {n}", "answer": f"{LONG} {n}"} for n in range(40)]
    rows += [{"question": f"What helps against disease {n}?", "answer": f"{LONG}, {n} more"} for n in range(5)]
    figures = prepared(tmp_path, [*rows, rows[0]], tokenizer, "data.near_duplicates=drop")
    assert figures["duplicates"] == 1 and figures["reasons"] == {"near-duplicate": 5} and figures["kept"] == 40
    assert figures["listed"][0]["near"] == {"row": 1, "likeness": round(10 / 11, 4)}
    copies = prepared(tmp_path, [*rows, rows[0]], tokenizer, "data.near_duplicates=drop", "data.split=random")
    assert (copies["duplicates"], copies["kept"]) == (1, 40)


def test_a_split_that_would_be_empty_is_refused_with_what_works(tmp_path: Path, tokenizer: Tokenizer) -> None:
    rows = [{"question": f"{LONG} {n}?", "answer": f"{n}"} for n in range(30)]
    with pytest.raises(ToolkitError) as caught:
        prepared(tmp_path, rows, tokenizer, "data.near_duplicates=drop-across")
    assert "leaves train empty" in caught.value.message
    assert "`--set data.near_duplicates=count` gives train 24, val 3, test 3" in caught.value.hint


@pytest.mark.parametrize("way", ["count", "drop-across", "drop"])
def test_where_all_are_alike_not_all_pairs_are_compared(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A form of nine words makes each question nearly every other: 2,000 of them have two million pairs."""
    rows = records([(f"what are the signs and symptoms of {n} syndrome", LONG) for n in range(2000)])
    splits: Splits = {"train": rows[:1600], "val": rows[1600:1800], "test": rows[1800:]}
    compared = []

    def counted(one: Words, other: Words) -> float:
        compared.append(1)
        return jaccard_of_words(one, other)

    monkeypatch.setattr(near, "jaccard", counted)
    if way == "count":
        assert len(near_duplicates(splits, 0.8)) == 400
    elif way == "drop-across":
        assert len(drop_across(splits, 0.8)[1]) == 1800
    else:
        assert len(drop_near(rows, 0.8)[1]) == 1999
    assert len(compared) < 3 * len(rows)


def test_words_of_a_text() -> None:
    assert distinct_words("what is asthma") == {"what", "is", "asthma"}
    assert distinct_words("covid 的症状") == {"covid", "的症", "症状"}
    assert distinct_words("痛") == {"痛"}
