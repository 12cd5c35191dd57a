"""The doctor reads the data as prepare does: it never says ✓ to what prepare refuses, and says what it did not read."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.doctor.conftest import Home, only_failure
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import folder_of
from toolkit.core.stage import Check
from toolkit.prepare import checks as data_checks
from toolkit.prepare import packed, prepare, read
from toolkit.prepare.read import read_table
from toolkit.prompt.tokenizer import load_tokenizer

ROWS = [(f"question {number}", f"answer {number}") for number in range(60)]


def csv_text(rows: list[tuple[str, str]], header: str = "question,answer") -> str:
    return "\n".join([header, *(f'"{question}","{answer}"' for question, answer in rows)]) + "\n"


FILES: dict[str, tuple[str, str]] = {
    "good.csv": (csv_text(ROWS), ""),
    "good.jsonl": ("".join(json.dumps({"question": q, "answer": a}) + "\n" for q, a in ROWS), ""),
    "good.json": (json.dumps({"rows": [{"instruction": q, "output": a} for q, a in ROWS]}), ""),
    "one_question.csv": (csv_text([("the same", answer) for _, answer in ROWS]), ""),
    "two_rows.csv": (csv_text(ROWS[:2]), ""),
    "three_rows.csv": (csv_text(ROWS[:3]), ""),
    "no_answers.csv": (csv_text([(question, "") for question, _ in ROWS]), ""),
    "other_columns.csv": (csv_text(ROWS, "colour,size"), ""),
    "header_only.csv": ("question,answer\n", ""),
    "open_quote.csv": (csv_text(ROWS) + 'what,"is never closed\n', ""),
    "broken.json": ('[{"question": "q", "answer": "a"}, ', ""),
    "broken.jsonl": ('{"question": "q", "answer": "a"}\n{"question"\n', ""),
    "binary.csv": ("\0\1\2\3" * 400, ""),
    "long_questions.csv": (csv_text([("word " * 300 + question, answer) for question, answer in ROWS]), ""),
    "long_answers.csv": (csv_text([(question, "word " * 300) for question, _ in ROWS]), ""),
    "long_answers_dropped.csv": (csv_text([(q, "word " * 300) for q, _ in ROWS]), "data.on_too_long=drop"),
    "two_of_three_dropped.csv": (csv_text([(q, a if n < 2 else "word " * 300) for n, (q, a) in enumerate(ROWS)]),
                                 "data.on_too_long=drop"),
    "at_random.csv": (csv_text([("the same", answer) for _, answer in ROWS]), "data.split=random"),
}  # fmt: skip


def written(name: str, home: Home) -> list[str]:
    """Write one of FILES; return the changes of settings that go with it."""
    text, change = FILES[name]
    path = home.path / name
    path.write_text(text, encoding="utf-8")
    return [f"data.source={path}", *filter(None, [change])]


def refusal(home: Home, *changes: str) -> ToolkitError | None:
    """What prepare says of the data, None if it takes them."""
    config = home.config(*changes)
    try:
        prepare(config, folder_of(config), Path(str(config.data.source)), load_tokenizer(home.path / "base"))
    except ToolkitError as exc:
        return exc
    return None


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_the_doctor_agrees_with_prepare(name: str, home: Home) -> None:
    changes = written(name, home)
    refused = refusal(home, *changes)
    found = home.examine(*changes, stages=("prepare",))
    if refused is None:
        check = next(check for check in found if check.name == "data")
        assert check.ok is True and "train, " in check.found and str(home.path / name) in check.found
        return
    check = only_failure(found, "data")
    assert check.found == refused.message and check.fix == refused.hint


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(FILES))
def test_without_the_tokenizer_nothing_is_said_to_be_right_that_prepare_refuses(name: str, home: Home) -> None:
    changes = written(name, home)
    config = home.config(*changes)
    try:
        check = data_checks.data(config, lambda: None, offline=True)
    except ToolkitError:
        check = Check("data", False, "", "")
    refused = refusal(home, *changes)
    assert not (check.ok and refused), (check, refused)
    assert check.ok is not False or refused


@pytest.mark.parametrize(("more", "said"), [(0, ""), (3, ", 3 duplicates")])
def test_the_doctor_counts_what_prepare_drops(home: Home, more: int, said: str) -> None:
    (home.path / "x.csv").write_text(csv_text([*ROWS, *ROWS[:more]]), encoding="utf-8")
    tokenizer = load_tokenizer(home.path / "base")
    check = data_checks.data(home.config(f"data.source={home.path / 'x.csv'}"), lambda: tokenizer, offline=True)
    assert f"{60 + more} of them usable: 48 train, 6 val, 6 test{said}" in check.found
    assert "duplicates" in check.found or not more


def test_without_the_tokenizer_short_records_are_surely_right(home: Home) -> None:
    check = data_checks.data(home.config("train.max_length=2048"), lambda: None, offline=True)
    assert check.ok is True and "20 of them usable" in check.found


@pytest.mark.slow
def test_a_vocabulary_that_cannot_write_the_prompt(home: Home) -> None:
    check = only_failure(home.examine("prompt.preset=chatml"), "prompt")
    assert "no control token `<|im_start|>`" in check.found and "alpaca" in check.fix
    (home.path / "base" / "tokenizer.json").unlink()
    assert "no tokenizer.json" in only_failure(home.examine(), "prompt").found


def large(kind: str, path: Path) -> int:
    """Write 4,000 rows, some of several lines with quotes in them; return their number."""
    rows = [(f"question {n}", f'an "answer", {n}\nin two lines') for n in range(4000)]
    objects = [{"question": question, "answer": answer} for question, answer in rows]
    if kind == "csv":
        cells = (f'{question},"{answer}"'.replace('"answer"', '""answer""') for question, answer in rows)
        path.write_text("question,answer\n" + "\n".join(cells) + "\n", encoding="utf-8")
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(each) + "\n" for each in objects), encoding="utf-8")
    elif kind == "json":
        path.write_text(json.dumps({"version": 1, "data": objects}, indent=1), encoding="utf-8")
    else:
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(objects), path)
    return len(rows)


@pytest.fixture
def small_head(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Let every file count as a large one, of which a few bytes are read."""

    def limit(size: int) -> None:
        monkeypatch.setattr(packed, "WHOLE", size)
        monkeypatch.setattr(read, "HEAD", size)
        monkeypatch.setattr(read, "ROWS", size // 40)

    return limit


@pytest.mark.parametrize("kind", ["csv", "jsonl", "json", "parquet"])
def test_of_a_large_file_the_first_rows_are_read(
    kind: str, home: Home, small_head: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = home.path / f"large.{kind}"
    count = large(kind, path)
    for size in (900, 901, 950, 1000, 1033):  # wherever the head ends, within a cell or between rows
        small_head(size)
        check = data_checks.data(home.config(f"data.source={path}"), lambda: None, offline=True)
        assert check.ok is None
        usable = check.found.split(": ")[1].split(" of its first ")
        assert int(usable[0]) == int(usable[1].split(" rows")[0]) and 5 <= int(usable[0]) < count
        assert "the others were not read" in check.found
    monkeypatch.undo()
    table = read_table(path, (), first_rows=True)
    assert table.whole and len(table.rows) == count


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (csv_text(ROWS, "colour,size"), "no column with the"),
        ("\0\1\2\3" * 400, "not text"),
        ("<!doctype html><p>" + "x" * 2000, ""),
    ],
)
def test_a_large_file_of_another_kind_is_refused(
    text: str, said: str, home: Home, small_head: Callable[[int], None]
) -> None:
    small_head(1000)
    (home.path / "large.csv").write_text(text, encoding="utf-8")
    check = only_failure(home.examine(f"data.source={home.path / 'large.csv'}", stages=("prepare",)), "data")
    assert said in check.found and check.fix


def test_a_large_file_whose_first_rows_are_useless_is_not_judged(home: Home, small_head: Callable[[int], None]) -> None:
    small_head(1000)
    rows = [(question, "") for question, _ in ROWS] + ROWS
    (home.path / "large.csv").write_text(csv_text(rows), encoding="utf-8")
    check = data_checks.data(home.config(f"data.source={home.path / 'large.csv'}"), lambda: None, offline=True)
    assert check.ok is None and ": none of the first" in check.found
