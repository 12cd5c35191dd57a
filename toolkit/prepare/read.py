"""From a file to rows: CSV, TSV, JSON, JSONL and parquet, as UTF-8 text. No row is lost on the way.

pandas is not used here: `read_csv` drops rows after a stray or unclosed quote without a word, and one byte that is not
UTF-8 fails the whole file.
"""

import csv
import io
import json
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.prepare.source import check_file

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".parquet": "parquet",
    ".pq": "parquet",
}
DELIMITERS = (",", ";", "\t")
WRONG_COLUMNS = "wrong number of columns"
NOT_AN_OBJECT = "not a JSON object"

_SIGNATURES = {
    b"PK\x03\x04": "a zip or Excel file",
    b"\xd0\xcf\x11\xe0": "an old Excel or Word file",
    b"\x1f\x8b": "a gzip file",
    b"%PDF": "a PDF",
    b"GGUF": "a GGUF file",
}
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")
_UNDECODABLE = re.compile("[\udc80-\udcff]")


@dataclass(frozen=True)
class Row:
    """One row of the source: `number` from 1 without the header, `line` in the file where that means something.

    `values` is empty where `problem` says why the row cannot be used; `text` then shows what stood there.
    """

    number: int
    line: int | None
    values: dict[str, Any]
    problem: str = ""
    text: str = ""


@dataclass(frozen=True)
class Table:
    """All rows of a file, its column names in the order in which they occur, and its SHA-256 (hex)."""

    path: Path
    columns: list[str]
    rows: list[Row]
    sha256: str


def read_table(path: Path, wanted: Iterable[str]) -> Table:
    """Read a data file; bytes that are not UTF-8 become lone surrogates, which clean.py rejects row by row.

    `wanted` are column names in lower case, by which the delimiter of a CSV is recognised. Raises ToolkitError if the
    file is missing, empty, binary, in another encoding, truncated or broken as a whole.
    """
    content = check_file(path).read_bytes()
    if not content.strip():
        raise ToolkitError(f"`{path}` is empty", hint="set `data.source` to a file with questions and answers")
    kind = FORMATS.get(path.suffix.lower()) or _sniff(content, path)
    if kind == "parquet":
        columns, rows = _parquet(content, path)
    else:
        text = _text(content, path)
        if kind == "json":
            columns, rows = _json(text, path)
        elif kind == "jsonl":
            columns, rows = _jsonl(text, path)
        else:
            columns, rows = _csv(text, path, frozenset(wanted))
    if not rows:
        kind_found = "" if _looks_like(content) == PLAIN else f": {_looks_like(content)}"
        raise ToolkitError(
            f"`{path}` has no rows{kind_found}", hint="set `data.source` to a file with questions and answers"
        )
    return Table(path, columns, rows, sha256(content).hexdigest())


PLAIN = "it looks like plain text"


def _sniff(content: bytes, path: Path) -> str:
    """Recognise a format by content, where the name does not tell."""
    if content[:4] == b"PAR1":
        return "parquet"
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if start[:1] in (b"{", b"["):
        return "json"  # which goes on as JSONL if there is one object a line
    first = start.partition(b"\n")[0]
    if path.suffix.lower() in ("", ".txt") and any(delimiter.encode() in first for delimiter in DELIMITERS):
        return "csv"
    raise ToolkitError(
        f"`{path}` is none of the formats that can be read ({_looks_like(content)})",
        hint=f"give it the extension of its format: {' '.join(FORMATS)}",
    )


def _looks_like(content: bytes) -> str:
    for signature, name in _SIGNATURES.items():
        if content.startswith(signature):
            return f"it looks like {name}"
    if content[:4] == b"PAR1":
        return "it looks like parquet"
    plain = len(content[:4096].translate(None, _CONTROLS)) == len(content[:4096])
    return PLAIN if plain else "it looks like binary data"


def _text(content: bytes, path: Path) -> str:
    """Decode UTF-8 with or without BOM; raises ToolkitError if the file as a whole is something else."""
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise _not_utf8(f"`{path}` is {encoding}, not UTF-8 (byte order mark at byte 0)", encoding)
    sample = content[:65536]
    if sample.count(0) * 5 > len(sample) * 2:  # about every other byte: plain text in two bytes a character
        raise _not_utf8(f"`{path}` is UTF-16, not UTF-8 (NUL at byte {content.index(0)})", "UTF-16")
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if content.startswith((*_SIGNATURES, b"PAR1")) or controls > max(32, len(sample) // 20):
        raise ToolkitError(
            f"`{path}` is not text: {_looks_like(content)}",
            hint=f"export your records as one of {' '.join(FORMATS)}",
        )
    if content[:512].lstrip().lower().startswith((b"<!doctype", b"<html")):
        raise ToolkitError(f"`{path}` is an HTML page, not data", hint="download the file itself")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        text = content.removeprefix(b"\xef\xbb\xbf").decode("utf-8", "surrogateescape")
    # One bad line among good ones is that row's problem. A file in another encoding shows otherwise: hardly any of its
    # characters beyond ASCII happens to be valid UTF-8.
    foreign = [line for line in text.split("\n") if not line.isascii()]
    bad = sum(1 for line in foreign if _UNDECODABLE.search(line))
    if bad >= 5 and bad * 2 > len(foreign):
        spot = _UNDECODABLE.search(text)
        assert spot is not None
        before = text[: spot.start()].encode("utf-8")
        offset = len(before) + (3 if content.startswith(b"\xef\xbb\xbf") else 0)
        line_number = before.count(b"\n") + 1
        raise _not_utf8(
            f"`{path}` is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,} (line {line_number:,}), "
            f"and {bad:,} lines like it",
            "WINDOWS-1252",
        )
    return text


def _not_utf8(message: str, encoding: str) -> ToolkitError:
    return ToolkitError(message, hint=f"save it as UTF-8, for example with `iconv -f {encoding} -t UTF-8 OLD > NEW`")


def _csv(text: str, path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    """Read delimited text whose first row names the columns; quoted cells may hold anything (RFC 4180)."""
    csv.field_size_limit(sys.maxsize)
    delimiter = max(DELIMITERS, key=lambda candidate: _fit_of_header(text, candidate, wanted))
    # Strict: a quote that is never closed would otherwise swallow all rows behind it in silence.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    columns: list[str] = []
    rows: list[Row] = []
    start = 1
    try:
        for cells in reader:
            line, start = start, reader.line_num + 1
            if not cells:
                continue  # an empty line is no row
            if not columns:
                columns = [name.strip() for name in cells]
            elif len(cells) == len(columns):
                rows.append(Row(len(rows) + 1, line, dict(zip(columns, cells, strict=True))))
            else:
                problem = f"{WRONG_COLUMNS}: {len(cells)} instead of {len(columns)}"
                rows.append(Row(len(rows) + 1, line, {}, problem, delimiter.join(cells)))
    except csv.Error as exc:
        if "unexpected end" in str(exc):
            raise ToolkitError(
                f"`{path}` is truncated: the quoted cell of the row at line {start:,} is never closed",
                hint="copy or export the file again; a quote inside a quoted cell is written twice",
            ) from None
        raise ToolkitError(
            f"`{path}` line {reader.line_num:,} is not valid CSV: {exc}",
            hint="a quote inside a quoted cell is written twice",
        ) from None
    return columns, rows


def _fit_of_header(text: str, delimiter: str, wanted: frozenset[str]) -> tuple[int, int]:
    """Rate a delimiter by the header it gives: names that are known, then the number of columns."""
    try:
        header = next(
            (row for row in csv.reader(io.StringIO(text[:65536], newline=""), delimiter=delimiter) if row), []
        )
    except csv.Error:
        return (0, 0)
    return (sum(name.strip().casefold() in wanted for name in header), len(header))


def _json(text: str, path: Path) -> tuple[list[str], list[Row]]:
    """Read a JSON list of objects, or an object that holds one list; one object a line is read as JSONL."""
    try:
        value = json.loads(text)
    except json.JSONDecodeError as exc:
        if exc.msg == "Extra data" and text.lstrip().startswith("{"):
            return _jsonl(text, path)
        raise ToolkitError(
            f"`{path}` is not valid JSON: {exc.msg} at line {exc.lineno:,}, column {exc.colno:,}",
            hint="the file is broken or truncated: export it again",
        ) from None
    except (RecursionError, ValueError) as exc:
        raise ToolkitError(f"`{path}` cannot be read as JSON: {exc}", hint="export it as JSONL") from None
    if isinstance(value, dict):
        lists = [item for item in value.values() if isinstance(item, list)]
        value = lists[0] if len(lists) == 1 else [value] if not lists else None
    if not isinstance(value, list):
        raise ToolkitError(
            f"`{path}` holds no list of records", hint="write a list of objects, or an object with one such list"
        )
    return _objects([(None, item) for item in value])


def _jsonl(text: str, path: Path) -> tuple[list[str], list[Row]]:
    """Read one JSON object a line; empty lines are no rows."""
    found: list[tuple[int | None, Any]] = []
    # Not splitlines(): JSON strings may hold U+2028 and others that it takes for line ends.
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            found.append((number, json.loads(line)))
        except (ValueError, RecursionError) as exc:
            detail = exc.msg if isinstance(exc, json.JSONDecodeError) else str(exc)
            raise ToolkitError(
                f"`{path}` line {number:,} is not JSON: {detail}",
                hint="every line must be one JSON object; the last line of a truncated file breaks off",
            ) from None
    return _objects(found)


def _objects(items: list[tuple[int | None, Any]]) -> tuple[list[str], list[Row]]:
    columns: dict[str, None] = {}
    rows = []
    for number, (line, item) in enumerate(items, start=1):
        if isinstance(item, dict):
            columns.update(dict.fromkeys(item))
            rows.append(Row(number, line, item))
        else:
            rows.append(Row(number, line, {}, NOT_AN_OBJECT, json.dumps(item, ensure_ascii=False)))
    return list(columns), rows


def _parquet(content: bytes, path: Path) -> tuple[list[str], list[Row]]:
    """Read a parquet file; text that is not UTF-8 becomes lone surrogates, as in the other formats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
        columns = {name: _values(column, pa) for name, column in zip(table.column_names, table.columns, strict=True)}
    except (pa.ArrowException, OSError) as exc:
        raise ToolkitError(
            f"`{path}` is not a whole parquet file: {str(exc).splitlines()[0]}",
            hint="the file is broken or truncated: copy or export it again",
        ) from None
    names = list(columns)
    rows = [
        Row(number, None, dict(zip(names, cells, strict=True)))
        for number, cells in enumerate(zip(*columns.values(), strict=True), start=1)
    ]
    return names, rows


def _values(column: Any, pa: Any) -> list[Any]:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    types = pa.types
    if any(check(column.type) for check in (types.is_string, types.is_large_string, types.is_binary)):
        # Arrow does not check UTF-8 on reading, and to_pylist would raise on the first bad cell of all.
        cells = column.cast(pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]
    values: list[Any] = column.to_pylist()
    return values
