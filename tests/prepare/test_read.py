import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from tests.support.rows import clean
from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columnar import UNREADABLE
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_table
from toolkit.prepare.split import drop_duplicates
from toolkit.prepare.table import Table

WANTED = wanted_names(DataSettings())


def reading(tmp_path: Path, name: str, content: bytes | str) -> Table:
    path = tmp_path / name
    path.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
    return read_table(path, WANTED)


def refused(tmp_path: Path, name: str, content: bytes | str) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        reading(tmp_path, name, content)
    assert name in caught.value.message and caught.value.hint
    return caught.value


@pytest.mark.parametrize("delimiter", [",", ";", "\t"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_the_delimiter_is_found(tmp_path: Path, delimiter: str, bom: bytes) -> None:
    cell = f'"Question: a{delimiter}, ; b ?\r\nAnswer: said ""so"".) \r\n"'
    table = reading(tmp_path, "x.csv", bom + f"AnswerID{delimiter}Answer\r\nA1{delimiter}{cell}\r\n".encode())
    assert table.columns == ["AnswerID", "Answer"]
    assert table.rows[0].values["Answer"] == f'Question: a{delimiter}, ; b ?\r\nAnswer: said "so".) \r\n'


def test_known_names_decide_between_delimiters(tmp_path: Path) -> None:
    table = reading(tmp_path, "x.csv", "question;answer;a,b,c,d\nq;a;n\n")
    assert table.columns == ["question", "answer", "a,b,c,d"]


def test_rows_and_lines_are_numbered_as_people_count(tmp_path: Path) -> None:
    table = reading(tmp_path, "x.csv", 'question,answer\n"two\nlines",a\n\nonly one\nq,a,more\nq,a\n')
    assert [(row.number, row.line, bool(row.problem)) for row in table.rows] == [
        (1, 2, False),
        (2, 5, True),
        (3, 6, True),
        (4, 7, False),
    ]
    assert table.rows[1].problem == "wrong number of columns: 1 instead of 2"


def test_a_cell_may_be_longer_than_the_csv_module_likes(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert reading(tmp_path, "x.csv", f"question,answer\nq,{long}\n").rows[0].values["answer"] == long


def test_a_quote_that_is_never_closed_is_a_truncated_file(tmp_path: Path) -> None:
    error = refused(tmp_path, "x.csv", 'question,answer\nq,a\nq,"begins\nand goes on\n')
    assert "truncated" in error.message and "line 3" in error.message


def test_a_stray_quote_is_named_with_its_line(tmp_path: Path) -> None:
    assert "line 3" in refused(tmp_path, "x.csv", 'question,answer\nq,a\nq,"said "so""\n').message


def test_real_medquad(medquad: Path) -> None:
    table = read_table(medquad, WANTED)
    assert len(table.rows) == 2479
    assert sha256_of(medquad) == "0dad0f96fba17eea7592d5f592aa31f2f809bb96eae45a2663422958060a0929"


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.jsonl", '{"question": "q\u2028", "answer": "a"}\n\n{"question": "r", "answer": "b"}'),
        ("x.ndjson", '\ufeff{"question": "q\u2028", "answer": "a"}\r\n{"question": "r", "answer": "b"}\r\n'),
        ("x.jsonl", '{"question": "q\u2028", "answer": "a"}\n\u00a0\n\u3000\f\n{"question": "r", "answer": "b"}'),
        ("x.json", '[{"question": "q\u2028", "answer": "a"}, {"question": "r", "answer": "b"}]'),
        ("x.json", '{"n": 2, "data": [{"question": "q\u2028", "answer": "a"}, {"question": "r", "answer": "b"}]}'),
        ("x.json", '{"question": "q\u2028", "answer": "a"}\n{"question": "r", "answer": "b"}\n'),
        ("noname", '{"question": "q\u2028", "answer": "a"}\n{"question": "r", "answer": "b"}\n'),
        ("x.tsv", "question\tanswer\nq\u2028\ta\nr\tb\n"),
        ("x.txt", "question;answer\nq\u2028;a\nr;b\n"),
    ],
)
def test_text_formats(tmp_path: Path, name: str, content: str) -> None:
    table = reading(tmp_path, name, content)
    assert [row.values for row in table.rows] == [
        {"question": "q\u2028", "answer": "a"},
        {"question": "r", "answer": "b"},
    ]


@pytest.mark.parametrize("name", ["x.parquet", "x.unknown"])
def test_parquet(tmp_path: Path, name: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pa.table(
        {
            "question": pa.array(["q", "r", None]).dictionary_encode(),
            "answer": pa.Array.from_buffers(pa.string(), 3, pa.array([b"fine", b"\xff\xfe", b"x"]).buffers()),
        }
    )
    pq.write_table(table, tmp_path / name)
    rows = read_table(tmp_path / name, WANTED).rows
    assert [row.values["question"] for row in rows] == ["q", "r", None]
    assert [row.values["answer"] for row in rows] == ["fine", "\udcff\udcfe", "x"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv", b"", "is empty"),
        ("x.csv", b" \r\n\n", "is empty"),
        ("x.csv", b"question,answer\n", "has no rows"),
        ("x.json", b"[]", "has no rows"),
        ("x.csv", b"PK\x03\x04rest of it", "a zip file"),
        ("x.csv", bytes(range(256)) * 20, "is not text"),
        ("x.jsonl", b"GGUF\3\0\0\0", "a GGUF file"),
        ("x.csv", b"<!DOCTYPE html><html>", "is not data: it looks like an HTML page"),
        ("x.xls", b"\xef\xbb\xbf <TABLE><tr><td>q</td></tr></TABLE>", "an HTML page"),
        ("x.json", b"<?xml version='1.0'?><rows/>", "is not data: it looks like an XML file"),
        ("x.csv", "question,answer\nq,a\n".encode("utf-16"), "is UTF-16, not UTF-8"),
        ("x.csv", "question,answer\nq,a\n".encode("utf-16-le"), "is UTF-16, not UTF-8"),
        ("x.csv", "question,answer\nq,a\n".encode("utf-32"), "is UTF-32, not UTF-8"),
        ("x.csv", b"question,answer\n" + "wärme,kälte\n".encode("latin-1") * 9, "byte 0xe4 at offset 17 (line 2)"),
        ("x.json", b'[{"question": "q", "ans', "not valid JSON: Unterminated string"),
        ("x.json", b'{"a": [], "b": []}', "holds no list of records"),
        ("x.json", b"3", "holds no list of records"),
        ("x.json", b"[" * 100_000, "cannot be read as JSON"),
        ("x.jsonl", b'{"question": "q", "answer": "a"}\n\nnot json\n', "line 3 is not JSON"),
        ("x.jsonl", b'{"question": "q", "answer": "a"}\n{"question": "q", "an', "line 2 is not JSON"),
        ("x.parquet", b"PAR1 and no more", "not a whole parquet file"),
        ("x.xlsx", b"PK\x03\x04", "an Excel file"),
        ("x.docx", b"some words", "not in a format that can be read"),
    ],
)
def test_bad_files(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused(tmp_path, name, content).message


def test_a_truncated_parquet_file(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"question": ["q"] * 999, "answer": ["a"] * 999}), whole)
    content = whole.read_bytes()
    assert "not a whole parquet file" in refused(tmp_path, "x.parquet", content[: len(content) // 2]).message


def test_missing_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match="no data file"):
        read_table(tmp_path / "none.csv", WANTED)
    with pytest.raises(ToolkitError, match="is a folder"):
        read_table(tmp_path, WANTED)


def test_one_undecodable_row_is_a_rejected_row(tmp_path: Path) -> None:
    table = reading(tmp_path, "x.csv", "question,answer\nwärme,gut\n".encode() + b"w\xe4rme,x\nq,a\0b\nq,a\n")
    records, rejected = clean(table, find_columns(table, DataSettings()), "Explain:")
    assert [record.number for record in records] == [1, 4]
    assert [(item.number, item.reason) for item in rejected] == [
        (2, "binary or undecodable text"),
        (3, "binary or undecodable text"),
    ]
    assert rejected[0].text == "w\ufffdrme | x"


def test_one_undecodable_jsonl_row(tmp_path: Path) -> None:
    lines = [b'{"question": "w\xe4rme", "answer": "x"}', b'{"question": "\\ud800", "answer": "x"}', b"[1]"]
    table = reading(tmp_path, "x.jsonl", b"\n".join([*lines, b'{"question": "q", "answer": "a"}']))
    records, rejected = clean(table, find_columns(table, DataSettings()), "Explain:")
    assert [record.number for record in records] == [4]
    assert [item.reason for item in rejected] == ["binary or undecodable text"] * 2 + ["not a JSON object"]


cells = st.text(
    st.one_of(st.sampled_from(list(",;\t\"'\n\r ()ab")), st.characters(exclude_categories=["Cs", "Cf", "Mn", "Lo"])),
    max_size=12,
)


@given(
    rows=st.lists(st.lists(cells, min_size=1, max_size=4), min_size=1, max_size=12),
    delimiter=st.sampled_from([",", ";", "\t"]),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    ending=st.sampled_from(["\n", "\r\n"]),
    bom=st.booleans(),
)
def test_no_csv_row_is_lost(
    tmp_path_factory: pytest.TempPathFactory,
    rows: list[list[str]],
    delimiter: str,
    quoting: int,
    ending: str,
    bom: bool,
) -> None:
    text = "".join(cell for row in rows for cell in row)
    assume(sum(char < " " for char in text) <= 32)  # else the file as a whole counts as binary
    filled = [row for row in rows if any(cell.strip() for cell in row)]  # a row of empty cells is none
    assume(filled)
    if "\r" in text:
        quoting = csv.QUOTE_ALL  # Python's own writer leaves a lone CR unquoted, which then ends the row
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter, quoting=quoting, lineterminator=ending)  # type: ignore[arg-type]
    writer.writerows([["id", "question", "answer"], *rows])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_bytes(buffer.getvalue().encode("utf-8-sig" if bom else "utf-8"))
    table = read_table(path, WANTED)
    assert [row.number for row in table.rows] == list(range(1, len(filled) + 1))
    for row, written in zip(table.rows, filled, strict=True):
        while len(written) > 3 and not written[-1].strip():  # nor is an empty cell behind the last column one
            written.pop()
        if len(written) == 3:
            assert list(row.values.values()) == written
        else:
            assert row.problem.startswith("wrong number of columns")
    records, rejected = clean(table, find_columns(table, DataSettings()), "Explain:")
    kept, duplicates = drop_duplicates(records)
    assert len(kept) + duplicates + len(rejected) == len(filled)
    assert sorted([record.number for record in records] + [item.number for item in rejected]) == list(
        range(1, len(filled) + 1)
    )


words = st.text(st.characters(exclude_categories=["Cs", "Cf", "Mn", "Lo"]), max_size=8)
values = st.one_of(st.none(), st.integers(), words, st.lists(st.integers(), max_size=2))


@given(rows=st.lists(st.dictionaries(st.sampled_from(["question", "answer", "id"]), values), min_size=1, max_size=10))
def test_no_jsonl_row_is_lost(tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, object]]) -> None:
    # An object of empty cells is not a row.
    filled = [row for row in rows if any(cell not in (None, []) and str(cell).strip() for cell in row.values())]
    rows = [{"question": "q", "answer": "a"}, *rows]
    path = tmp_path_factory.getbasetemp() / "any.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    table = read_table(path, WANTED)
    records, rejected = clean(table, find_columns(table, DataSettings()), "Explain:")
    numbers = [record.number for record in records] + [item.number for item in rejected]
    assert len(numbers) == len(set(numbers)) == len(filled) + 1
    assert all(rows[number - 1] in filled for number in numbers if number > 1)


def test_a_few_binary_bytes_are_called_binary(tmp_path: Path) -> None:
    (tmp_path / "b.csv").write_bytes(b"\x00\x01\x02binary")
    with pytest.raises(ToolkitError, match="no rows: it looks like binary data"):
        read_table(tmp_path / "b.csv", {"answer"})


@pytest.mark.parametrize("name", [b"q\xffestion", b"\xe9tat", b"\xed\xa0\x80uestion"])
def test_a_parquet_column_whose_name_is_not_utf8_is_named(tmp_path: Path, name: bytes) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"Q" * len(name): ["a"], "answer": ["b"]}), path)
    path.write_bytes(path.read_bytes().replace(b"Q" * len(name), name))
    with pytest.raises(ToolkitError) as problem:
        read_table(path, ["answer"])
    assert "whose name is not UTF-8" in problem.value.message and str(path) in problem.value.message


@pytest.mark.parametrize("kind", ["timestamp", "date", "nested", "zone", "struct", "list"])
def test_a_parquet_cell_that_cannot_be_read_matters_only_where_it_is_wanted(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    late = pa.array([10**15, None], pa.timestamp("ms"))
    bad = pa.array([b"\xff", None], pa.binary()).view(pa.string())
    column = {
        "timestamp": late,
        "date": pa.array([10**8, None], pa.int32()).view(pa.date32()),
        "nested": pa.StructArray.from_arrays([late], ["t"]),
        "zone": pa.array([1, None], pa.timestamp("us", tz="Mars/Base")),
        "struct": pa.StructArray.from_arrays([bad], ["x"]),
        "list": pa.ListArray.from_arrays(pa.array([0, 1, 2], pa.int32()), late),
    }[kind]
    path = tmp_path / "x.parquet"
    pq.write_table(pa.table({"question": ["q", "r"], "answer": ["a", "b"], "when": column}), path)
    rows = read_table(path, WANTED).rows
    assert [row.values["answer"] for row in rows] == ["a", "b"] and rows[0].values["when"] == UNREADABLE
    pq.write_table(pa.table({"question": ["q", "r"], "answer": column}), path)
    with pytest.raises(ToolkitError) as caught:
        read_table(path, WANTED)
    assert "the column `answer`" in caught.value.message and "cannot be read" in caught.value.message
    assert "\n" not in caught.value.message and caught.value.hint
    assert ("the time zone is unknown here" in caught.value.message) == (kind == "zone")


@pytest.mark.parametrize("kind", ["fixed", "large", "dictionary"])
def test_binary_parquet_columns_are_text(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    cells = [b"Rest", b"caf\xe9", None]
    fixed = pa.array(cells, pa.binary(4))
    column = {
        "fixed": fixed,
        "large": pa.array(cells, pa.large_binary()),
        "dictionary": pa.array(cells, pa.binary()).dictionary_encode(),
    }[kind]
    pq.write_table(pa.table({"question": ["q", "r", "s"], "answer": column}), tmp_path / "x.parquet")
    rows = read_table(tmp_path / "x.parquet", WANTED).rows
    assert [row.values["answer"] for row in rows] == ["Rest", "caf\udce9", None]
