"""From a source to a table: text, parquet, Arrow and workbooks, packed or not. No row is lost on the way.

pandas is not used here: `read_csv` drops rows after a stray or unclosed quote silently, and one byte that is not
UTF-8 fails the whole file.
"""

import codecs
import contextlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare import packed
from toolkit.prepare.columnar import read_columnar
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.containers import BINARY, EXTENSIONS, PLAIN, TEXTS, looks_like
from toolkit.prepare.decoding import SAMPLE, Text, open_text
from toolkit.prepare.delimited import DELIMITERS, read_delimited
from toolkit.prepare.documents import PAIR, read_documents
from toolkit.prepare.hints import header_hint
from toolkit.prepare.hub_data import data_set_rows
from toolkit.prepare.objects import read_json_rows, read_jsonl_rows
from toolkit.prepare.packed import ARROW, ARROW_STREAM, PARQUET, ZIP, Opened, open_data
from toolkit.prepare.source import Source, check_file
from toolkit.prepare.table import Row, Table
from toolkit.prepare.workbook import read_workbook

HEAD = 4 * 2**20  # bytes that are read of a larger text, for a check
ROWS = 2500  # that are read of other files
_COLUMNAR = (PARQUET, ARROW, ARROW_STREAM)
_NO_ROWS = "set `data.source` to a file with questions and answers"


def read_source(source: Source, settings: DataSettings, *, first_rows: bool = False) -> Table:
    """Read one source under the settings, as `read_table` does."""
    wanted = wanted_names(settings)
    if source.hub:
        rows = Opened(source.path, source.path, unpacked=data_set_rows(str(source.path), source.part))
        return Table(source.path, *read_columnar(rows, frozenset(wanted))[:2], source.part)
    return read_table(source.path, wanted, part=source.part, encoding=settings.encoding, first_rows=first_rows)


def read_table(
    path: Path, wanted: Iterable[str], *, part: str = "", encoding: str = "", first_rows: bool = False
) -> Table:
    """Read a data file; bytes that are not text become lone surrogates, which clean.py rejects row by row.

    `wanted` are keys of column names (see `name_key`), by which the delimiter of a CSV is recognised. `part` names a
    sheet of a workbook, `encoding` the one of a text that is not UTF-8. With `first_rows`, a large file is not read
    whole. Raises ToolkitError if the file is missing, empty, binary, in another encoding, truncated or broken.
    """
    names = frozenset(wanted)
    if check_file(path).is_dir():
        columns, rows, whole = read_documents(Opened(path, path), ROWS if first_rows else None)
        return Table(path, columns, rows, whole=whole)
    opened = open_data(path, packed.WHOLE if first_rows else None)
    start, whole, named, part = opened.start(), opened.whole, part, ""
    if start.startswith(_COLUMNAR):
        most = ROWS if first_rows and opened.size() > packed.WHOLE else None
        columns, rows, whole = read_columnar(opened, names, most)
    elif start.startswith(ZIP):
        most = ROWS if first_rows and opened.size() > HEAD else None  # it has many times its bytes
        columns, rows, part, whole = _read_zip(opened, names, named, most)
    elif start.lstrip(b"\xef\xbb\xbf \r\n").startswith(b"<") and PAIR in opened.content():
        columns, rows, whole = read_documents(opened)
    else:
        try:
            columns, rows = _read_text(opened, names, encoding)
        except ToolkitError as exc:
            if not whole and start.lstrip(b"\xef\xbb\xbf \r\n").startswith((b"{", b"[")):
                return read_table(path, names, part=named, encoding=encoding)  # its rows may need all of it
            if whole or "truncated" not in exc.message:
                raise
            columns, rows = [], []  # what was read ends inside a quoted cell
    if named and named != part:
        raise ToolkitError(
            f"`{path}` has no sheets, so `#{named}` names nothing", hint=f"set `data.source` to `{path}` alone"
        )
    if not rows and whole:
        binary = f": {BINARY}" if looks_like(start, path)[0] == BINARY and not part else ""
        raise ToolkitError(f"`{path}` has no rows{binary}", hint=_NO_ROWS)
    return Table(path, columns, rows, part, encoding, whole)


def _read_zip(
    opened: Opened, wanted: frozenset[str], part: str, most: int | None
) -> tuple[list[str], Sequence[Row], str, bool]:
    with opened.stream() as stream:
        found, hint = looks_like(stream.read(), opened.path)
    if found == "it looks like a zip file":  # `open_data` leaves those of XML documents alone
        columns, rows, whole = read_documents(opened, most)
        return columns, rows, "", whole
    if not found.endswith("an Excel file"):
        raise ToolkitError(f"`{opened.path}` is not a data file: {found}", hint=hint)
    return read_workbook(opened, wanted, part, most)


def _read_text(opened: Opened, wanted: frozenset[str], encoding: str) -> tuple[list[str], Sequence[Row]]:
    """Read text as its name says, else as it looks."""
    path = opened.path
    if not opened.start(SAMPLE).strip() and not opened.content().strip():
        raise ToolkitError(f"`{path}` is empty", hint=_NO_ROWS)
    if not opened.whole:
        opened = replace(opened, data=_whole_lines(opened.start(HEAD)))
    suffix = opened.inner.suffix.lower()
    if suffix not in TEXTS:
        _refuse_unknown(opened.start(SAMPLE), opened)
    text = open_text(opened, encoding)
    kind = suffix if suffix in TEXTS else _sniff(text, opened)
    if kind == ".json":
        return read_json_rows(text, path)
    if kind in (".jsonl", ".ndjson"):
        return read_jsonl_rows(text, path)
    try:
        return read_delimited(text, path, wanted)
    except ToolkitError as exc:  # lines above the header may have told another delimiter
        raise ToolkitError(exc.message, hint=header_hint(path, {}) or exc.hint) from None


def _whole_lines(start: bytes) -> bytes:
    """Cut after the last line that does not end within a quoted cell."""
    end = start.rfind(b"\n") + 1
    while end > 0 and start.count(b'"', 0, end) % 2:
        end = start.rfind(b"\n", 0, start.rfind(b'"', 0, end)) + 1
    return start[:end] if end > 0 else _whole_letters(start)


def _whole_letters(start: bytes) -> bytes:
    """Cut a letter that breaks off, of UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    with contextlib.suppress(UnicodeDecodeError):
        decoder.decode(start)
        return start[: len(start) - len(decoder.getstate()[0])]
    return start


def _refuse_unknown(content: bytes, opened: Opened) -> None:
    """Raise ToolkitError for a file that is known to be something else."""
    found, hint = looks_like(content, opened.path)
    if hint and found != BINARY:
        raise ToolkitError(f"`{opened.path}` is not in a format that can be read ({found})", hint=hint)


def _sniff(text: Text, opened: Opened) -> str:
    """Recognise a format by its text, where the name does not tell."""
    start = text.start().lstrip()
    if start[:1] in ("{", "["):
        return ".json"  # which continues as JSONL if there is one object per line
    first = start.partition("\n")[0]
    if opened.inner.suffix.lower() in ("", ".txt") and any(delimiter in first for delimiter in DELIMITERS):
        return ".csv"
    raise ToolkitError(
        f"`{opened.path}` is not in a format that can be read ({PLAIN})",
        hint=f"give it the extension of its format: {' '.join(EXTENSIONS)}",
    )
