"""From a file to a table: CSV, TSV, JSON, JSONL and parquet, as UTF-8 text. No row is lost on the way.

pandas is not used here: `read_csv` drops rows after a stray or unclosed quote silently, and one byte that is not
UTF-8 fails the whole file.
"""

import io
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.prepare.cells import is_blank
from toolkit.prepare.containers import EXTENSIONS, PLAIN, decode_text, looks_like
from toolkit.prepare.delimited import DELIMITERS, read_delimited
from toolkit.prepare.objects import read_json_rows, read_jsonl_rows, tidied
from toolkit.prepare.source import check_file
from toolkit.prepare.table import Row, Table

_KINDS = {".csv": "csv", ".tsv": "csv", ".json": "json", ".jsonl": "jsonl", ".ndjson": "jsonl"}
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
        columns, rows = _parquet(content, path)
    else:
        text = decode_text(content, path)
        if kind == "json":
            columns, rows = read_json_rows(text, path)
        elif kind == "jsonl":
            columns, rows = read_jsonl_rows(text, path)
        else:
            columns, rows = read_delimited(text, path, frozenset(wanted))
    if not rows:
        found, hint = looks_like(content, path)
        raise ToolkitError(f"`{path}` has no rows" + ("" if found == PLAIN else f": {found}"), hint=hint or _NO_ROWS)
    return Table(path, columns, rows, sha256(content).hexdigest())


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


def _parquet(content: bytes, path: Path) -> tuple[list[str], list[Row]]:
    """Read a parquet file; text that is not UTF-8 becomes lone surrogates, as in the other formats."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.ParquetFile(io.BytesIO(content)).read()  # read_table refuses two columns of one name
        names = list(table.column_names)
        columns = [_values(column, pa) for column in table.columns]
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
    rows = [
        Row(number, None, dict(zip(names, cells, strict=True)))
        for number, cells in enumerate(zip(*columns, strict=True), start=1)
        if not all(map(is_blank, cells))
    ]
    return tidied(names, rows)


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
