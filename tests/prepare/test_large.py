"""A file that stays on the disk gives the same rows, or the same refusal, as one that is held in memory."""

import gzip
import json
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.core import spool
from toolkit.core.errors import ToolkitError, explain
from toolkit.core.input_settings import DataSettings
from toolkit.core.places import temporary_folder
from toolkit.prepare import decoding, objects, packed
from toolkit.prepare import read as module_of_read
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_table
from toolkit.prepare.table import Row

Found = tuple[list[str], list[Row]] | tuple[str, str]

# What decides how a text is read: quotes, blanks and ends of lines in odd places, and bytes of no encoding.
PARTS = ('"', '""', ', "', ' "', ",", "\t", "\n", "\r\n", "\r", "|", "--|--", "a", "é", "question", "answer", "sep=;\n",
         "q,a\n", "question,answer\n", "question\tanswer\n", "\ufeff", "\u2028", ";", "12", " ")  # fmt: skip
JSON = ("[", "]", "{", "}", ",", "\n", '{"q": "a"}', '{"question": "x", "answer": [1, "]"]}', '{"a": 1, "a": 2}', " ",
        '"x"', "12", "1.5e3", "null", "\ufeff", "\\", '"')  # fmt: skip
TEXTS = st.sampled_from((PARTS, JSON)).flatmap(lambda parts: st.lists(st.sampled_from(parts), max_size=20)).map("".join)
BYTES = st.one_of(
    TEXTS.map(str.encode),
    st.tuples(TEXTS, st.sampled_from(("cp1252", "utf-16", "utf-8", "iso2022_jp"))).map(
        lambda pair: pair[0].encode(pair[1], "replace")
    ),
    st.lists(st.sampled_from((b"question,answer\n", b"\xe9,a\n", b"\xc3\xa9,b\n", b"\x00", b"x,y\n")), max_size=12).map(
        b"".join
    ),
)


def read(path: Path, encoding: str = "") -> Found:
    """Return the names and rows of a file, or what is said against it."""
    try:
        table = read_table(path, wanted_names(DataSettings()), encoding=encoding)
    except ToolkitError as exc:
        return exc.message, exc.hint
    return table.columns, [*table.rows]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Hold nothing in memory, and read pieces so small that everything is cut somewhere."""
    monkeypatch.setattr(packed, "WHOLE", -1)
    monkeypatch.setattr(spool, "KEPT", 1)
    monkeypatch.setattr(spool, "READ", 2)
    for module in (decoding, objects, packed):
        monkeypatch.setattr(module, "PIECE", 7)
    yield monkeypatch


@settings(max_examples=tries(300), deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(BYTES, st.sampled_from(("csv", "tsv", "json", "jsonl", "txt", "csv.gz")), st.sampled_from(("", "cp1252")))
def test_any_text(
    tmp_path_factory: pytest.TempPathFactory, tiny: pytest.MonkeyPatch, content: bytes, kind: str, encoding: str
) -> None:
    path = tmp_path_factory.mktemp("large") / f"x.{kind}"
    path.write_bytes(gzip.compress(content) if kind.endswith("gz") else content)
    on_disk = read(path, encoding)
    with tiny.context() as patch:
        patch.setattr(packed, "WHOLE", 2**20)
        for module in (decoding, objects, packed):
            patch.setattr(module, "PIECE", 2**20)
        assert read(path, encoding) == on_disk


@pytest.mark.parametrize("number", ["1.5", "1e-3", "-2.5E+10", "1234567890123456789012"])
def test_a_number_that_a_piece_cuts_is_one_number(tmp_path: Path, tiny: pytest.MonkeyPatch, number: str) -> None:
    path, row = tmp_path / "x.jsonl", '{"question": "q", "answer": "a"}\n'
    for before in range(40):
        path.write_text(f"{row}{' ' * before}{number}\n{row}", encoding="utf-8")
        assert [one.problem for one in read_table(path, ()).rows] == ["", objects.NOT_AN_OBJECT, ""]


@pytest.mark.parametrize("odd", ["", '{"question":\n"q", "answer": "a"}\n', "1 2 3\n", '{"question": "q"},\n'])
def test_a_value_that_is_a_line_is_parsed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, odd: str) -> None:
    parsed, path = 0, tmp_path / "x.jsonl"
    path.write_text('{"question": "q", "answer": "a"}\n' * 100 + odd + '{"question": "r", "answer": "b"}\nbroken\n')
    parse = json.JSONDecoder.raw_decode

    def counted(*given: Any, **named: Any) -> Any:
        nonlocal parsed
        parsed += 1
        return parse(*given, **named)

    monkeypatch.setattr(json.JSONDecoder, "raw_decode", counted)
    with pytest.raises(ToolkitError, match=rf"line {102 + odd.count(chr(10))} is not JSON"):
        read_table(path, ())
    assert parsed < 120


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("items", [0, 1, 60])
def test_a_list_of_objects_is_read_in_pieces(
    tmp_path: Path, tiny: pytest.MonkeyPatch, items: int, indent: int | None
) -> None:
    rows = [{"question": f"q {number} ] ,", "answer": 'a"é' * number} for number in range(items)]
    path = tmp_path / "x.json"
    path.write_text(json.dumps(rows, indent=indent, ensure_ascii=False) + "\n", encoding="utf-8")
    tiny.setattr(objects, "_records", None)  # which takes a whole value
    _, found = objects.read_json_rows(decoding.open_text(packed.open_data(path)), path)
    assert [row.values for row in found] == rows


@pytest.mark.parametrize("encoding", ["", "cp1252", "utf-16"])
@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize("form", ["list.json", "list.jsonl", "held.json", "held.jsonl", "lines.json", "lines.jsonl"])
def test_the_first_rows_are_read_wherever_the_text_is_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str, indent: int | None, encoding: str
) -> None:
    rows = [{"messages": [{"role": "user", "content": f'Что "{n}"?'}], "answer": "ответ 日本\n"} for n in range(9)]
    text = json.dumps({"version": 1, "data": rows} if "held" in form else rows, indent=indent, ensure_ascii=False)
    if "lines" in form:
        text = "\n".join(json.dumps(row, indent=indent, ensure_ascii=False) for row in rows)
    path = tmp_path / form
    path.write_text(text, encoding="utf-8")
    size = path.stat().st_size
    monkeypatch.setattr(packed, "WHOLE", size - 1)
    for head in range(size // 2, size // 2 + 120):
        monkeypatch.setattr(module_of_read, "HEAD", head)
        table = read_table(path, (), encoding=encoding, first_rows=True)
        found = [row.values for row in table.rows]
        assert not table.whole and found == rows[: len(found)] and len(found) > 1


@pytest.mark.parametrize("indent", [None, 2])
@pytest.mark.parametrize("orient", ["index", "columns", "lists", "split", "chats"])
def test_json_whose_rows_need_all_of_it_is_read_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, orient: str, indent: int | None
) -> None:
    rows = [{"question": f"q {n}", "answer": "ответ"} for n in range(20)]
    held: dict[str, dict[str, Any]] = {
        "index": {str(n): row for n, row in enumerate(rows)},
        "columns": {name: {str(n): row[name] for n, row in enumerate(rows)} for name in rows[0]},
        "lists": {name: [row[name] for row in rows] for name in rows[0]},
        "chats": {str(n): {"messages": [{"role": "user", "content": "q"}]} for n in range(20)},
        "split": {"columns": [*rows[0]], "data": [[*row.values()] for row in rows]},
    }
    path = tmp_path / "x.json"
    path.write_text(json.dumps(held[orient], indent=indent, ensure_ascii=False), encoding="utf-8")
    monkeypatch.setattr(packed, "WHOLE", 500)
    monkeypatch.setattr(module_of_read, "HEAD", 400)
    table = read_table(path, (), first_rows=True)
    expected = [*held["chats"].values()] if orient == "chats" else rows
    assert [row.values for row in table.rows] == expected and table.whole


@pytest.mark.parametrize("name", ["x.json", "x.jsonl"])
def test_a_broken_line_is_named_where_only_the_first_rows_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    line = '{"question": "q", "answer": "a"}\n'
    (tmp_path / name).write_text(line * 3 + '{"question": "q" "answer": "a"}\n' + line * 99)
    monkeypatch.setattr(packed, "WHOLE", 500)
    monkeypatch.setattr(module_of_read, "HEAD", 400)
    with pytest.raises(ToolkitError, match="line 4 is not JSON"):
        read_table(tmp_path / name, (), first_rows=True)


def test_a_large_file_in_a_zip_is_unpacked_to_the_disk(tmp_path: Path, tiny: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("rows.csv", "question,answer\n" + "q,a\n" * 50)
    opened = packed.open_data(path)
    assert opened.data is None and opened.unpacked is not None and opened.size() == len(opened.content()) == 216
    assert len(read_table(path, ()).rows) == 50


@pytest.mark.parametrize("kind", ["csv", "json", "jsonl", "csv.gz", "zip", "parquet", "xlsx"])
def test_a_full_disk_is_not_taken_for_a_damaged_file(kind: str, tmp_path: Path, tiny: pytest.MonkeyPatch) -> None:
    path, table = tmp_path / f"x.{kind}", [{"question": f"q {number}", "answer": "a" * 99} for number in range(600)]
    lines = "question,answer\n" + "".join(f"{row['question']},{row['answer']}\n" for row in table)
    if kind == "parquet":
        pq.write_table(pa.Table.from_pylist(table), path)
    elif kind == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("rows.csv", lines)
    elif kind == "csv.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif kind == "xlsx":
        book = openpyxl.Workbook(write_only=True)
        sheet = book.create_sheet()
        for row in [[*table[0]], *([*row.values()] for row in table)]:
            sheet.append(row)
        book.save(path)
    else:
        path.write_text({"csv": lines, "json": json.dumps(table)}.get(kind) or "\n".join(map(json.dumps, table)))
    assert len(read_table(path, ("question", "answer")).rows) == len(table)

    def full(dir: Path, buffering: int) -> IO[bytes]:
        return Path("/dev/full").open("r+b", buffering)

    tiny.setattr(spool, "WRITTEN", 512)
    tiny.setattr(tempfile, "TemporaryFile", full)
    with pytest.raises(OSError) as caught:
        read_table(path, ("question", "answer"))
    said = explain(caught.value)
    assert said is not None and said.message == f"the disk is full: {temporary_folder()}"
    assert "choose a folder on another disk with the variable TMPDIR" in said.hint
