"""The first rows of a data file that is too large to be read whole for a check."""

import io
import json
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.prepare.source import check_file

WHOLE = 32 * 2**20  # bytes of a file that is still read whole: MedQuAD's 2,479 rows have 3.5 MB
HEAD = 4 * 2**20  # bytes that are read of a larger one
PARQUET_ROWS = 2500


def file_head(path: Path) -> tuple[bytes, bool]:
    """Return a file's content, and whether it is all: of a large file, whole records from its start alone.

    Raises ToolkitError if the path is not a file, or a large parquet file is damaged.
    """
    size = check_file(path).stat().st_size
    if size <= WHOLE:
        return path.read_bytes(), True
    with path.open("rb") as file:
        start = file.read(HEAD)
    if start[:4] == b"PAR1":
        return _parquet_head(path), False
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"[", b"{"):
        items = _json_items(start)
        if items:
            return items, False
    return _whole_lines(start), False


def _whole_lines(start: bytes) -> bytes:
    """Cut after the last line that does not end within a quoted cell."""
    end = start.rfind(b"\n") + 1
    while end > 0 and start.count(b'"', 0, end) % 2:
        end = start.rfind(b"\n", 0, start.rfind(b'"', 0, end)) + 1
    return start[:end] if end > 0 else start


def _json_items(start: bytes) -> bytes:
    """Return the whole items of a list that breaks off, as a list; nothing where the text holds one object per line."""
    text = start.decode("utf-8-sig", "surrogateescape")
    opening = text.find("[")
    lines = text.split("\n", 2)
    if opening < 0 or (text.lstrip().startswith("{") and len(lines) > 1 and _is_json(lines[0])):
        return b""
    decoder, end, count = json.JSONDecoder(), opening + 1, 0
    try:
        while True:
            position = end
            while text[position : position + 1] and text[position] in ", \t\r\n":
                position += 1
            _, end = decoder.raw_decode(text, position)
            count += 1
    except (ValueError, RecursionError):  # the item that breaks off
        pass
    return (text[opening:end] + "]").encode("utf-8", "surrogateescape") if count else b""


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _parquet_head(path: Path) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        batch = next(pq.ParquetFile(path).iter_batches(batch_size=PARQUET_ROWS), None)
    except (pa.ArrowException, OSError) as exc:
        raise ToolkitError(
            f"`{path}` is not a whole parquet file: {str(exc).splitlines()[0]}",
            hint="the file is broken or truncated: copy or export it again",
        ) from None
    written = io.BytesIO()
    if batch is not None:
        pq.write_table(pa.Table.from_batches([batch]), written)
    return written.getvalue()
