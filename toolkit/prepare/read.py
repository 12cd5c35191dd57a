"""From a file to a table: CSV, TSV, JSON, JSONL and parquet, as UTF-8 text. No row is lost on the way.

pandas is not used here: `read_csv` drops rows after a stray or unclosed quote silently, and one byte that is not
UTF-8 fails the whole file.
"""

import io
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.prepare.cells import is_blank, name_key
from toolkit.prepare.containers import EXTENSIONS, PLAIN, decode_text, looks_like
from toolkit.prepare.delimited import DELIMITERS, read_delimited
from toolkit.prepare.headers import header_hint
from toolkit.prepare.objects import read_json_rows, read_jsonl_rows, tidied
from toolkit.prepare.source import check_file
from toolkit.prepare.table import Row, Table

_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_SHOWN_TYPE = 80  # characters of a column's type
UNREADABLE = "(cannot be read)"
_NO_ROWS = "set `data.source` to a file with questions and answers"


def read_table(path: Path, wanted: Iterable[str]) -> Table:
    """Read a data file; bytes that are not UTF-8 become lone surrogates, which clean.py rejects row by row.

    `wanted` are keys of column names (see `name_key`), by which the delimiter of a CSV is recognised. Raises
    ToolkitError if the file is missing, empty, binary, in another encoding, truncated or broken as a whole.
    """
    return parse_table(check_file(path).read_bytes(), path, wanted)


def parse_table(content: bytes, path: Path, wanted: Iterable[str]) -> Table:
    """Read the content of a data file, as `read_table` does; `path` names its format and is shown in errors."""
    if not content.strip():
        raise ToolkitError(f"`{path}` is empty", hint=_NO_ROWS)
    kind = "parquet" if path.suffix.lower() in (".parquet", ".pq") else _KINDS.get(path.suffix.lower())
    kind = kind or _sniff(content, path)
    if kind == "parquet":
        columns, rows = _parquet(content, path, frozenset(wanted))
    else:
        text = decode_text(content, path)
        if kind == "json":
            columns, rows = read_json_rows(text, path)
        elif kind == "jsonl":
            columns, rows = read_jsonl_rows(text, path)
        else:
            try:
                columns, rows = read_delimited(text, path, frozenset(wanted))
            except ToolkitError as exc:  # lines above the header may have told another delimiter
                raise ToolkitError(exc.message, hint=header_hint(path, {}) or exc.hint) from None
    if not rows:
        found, hint = looks_like(content, path)
        raise ToolkitError(f"`{path}` has no rows" + ("" if found == PLAIN else f": {found}"), hint=hint or _NO_ROWS)
    return Table(path, columns, rows)


def _sniff(content: bytes, path: Path) -> str:
    """Recognise a format by content, where the name does not tell."""
    if content[:4] == b"PAR1":
        return "parquet"
    found, hint = looks_like(content, path)
    start = content.removeprefix(b"\xef\xbb\xbf").lstrip()
    if not hint and start[:1] in (b"{", b"["):
        return "json"  # which continues as JSONL if there is one object per line
    first = start.partition(b"\n")[0]
    if path.suffix.lower() in ("", ".txt") and any(delimiter.encode() in first for delimiter in DELIMITERS):
        return "csv"
    raise ToolkitError(
        f"`{path}` is not in a format that can be read ({found})",
        hint=hint or f"give it the extension of its format: {' '.join(EXTENSIONS)}",
    )


def _parquet(content: bytes, path: Path, wanted: frozenset[str]) -> tuple[list[str], list[Row]]:
    """Read a parquet file; text that is not UTF-8 becomes lone surrogates, as in the other formats.

    A cell that has no value in Python, such as a date after the year 9999, is an error in a wanted column only.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()  # read_table refuses two columns of one name
        names = list(table.column_names)
    except UnicodeDecodeError as exc:
        name = exc.object.decode("utf-8", "backslashreplace")
        raise ToolkitError(
            f"`{path}` has a column whose name is not UTF-8: {name}",
            hint="rename the column and write the file again",
        ) from None
    except (pa.ArrowException, OSError) as exc:
        found, hint = looks_like(content, path)
        raise ToolkitError(
            f"`{path}` is not a whole parquet file: {str(exc).splitlines()[0]}" + (f" ({found})" if hint else ""),
            hint=hint or "the file is broken or truncated: copy or export it again",
        ) from None
    columns = [_cells(column, name, path, wanted) for name, column in zip(names, table.columns, strict=True)]
    rows = [
        Row(number, None, dict(zip(names, cells, strict=True)))
        for number, cells in enumerate(zip(*columns, strict=True), start=1)
        if not all(map(is_blank, cells))
    ]
    return tidied(names, rows)


def _cells(column: Any, name: str, path: Path, wanted: frozenset[str]) -> list[Any]:
    """Return a column's cells; where they cannot be read and nobody wants them, only which ones hold something."""
    import pyarrow as pa

    try:
        return _values(column, pa)
    # Of dates beyond Python's range, unknown time zones, text in a struct that is not UTF-8, types without a cast.
    except (ValueError, ArithmeticError, LookupError, TypeError, pa.ArrowException) as exc:
        if name_key(name) not in wanted:
            return [UNREADABLE if there else None for there in column.is_valid().to_pylist()]
        detail = str(exc.args[0] if exc.args and isinstance(exc, LookupError) else exc).partition("\n")[0]
        kind = str(column.type)[:_SHOWN_TYPE]
        # Arrow takes pytz where it is installed; else it says that Python's own module is missing.
        if "zoneinfo" in detail or "TimeZone" in type(exc).__name__:
            detail = "the time zone is unknown here"
        raise ToolkitError(
            f"`{path}`: the column `{name}` ({kind}) has a cell that cannot be read: {detail}",
            hint="write the column as text, or leave it out",
        ) from None


def _values(column: Any, pa: Any) -> list[Any]:
    types = pa.types
    if types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    if types.is_fixed_size_binary(column.type):
        column = column.cast(pa.binary())
    texts = (types.is_string, types.is_large_string, types.is_binary, types.is_large_binary)
    if any(check(column.type) for check in texts):
        # Arrow does not check UTF-8 on reading, and to_pylist would raise on the first bad cell of all.
        cells = column.cast(pa.large_binary()).to_pylist()
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in cells]
    values: list[Any] = column.to_pylist()
    return values
