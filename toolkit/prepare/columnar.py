"""From parquet and Arrow files to rows. pyarrow reads them; text that is not UTF-8 stays a problem of its row alone."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json
from toolkit.core.spool import Spool
from toolkit.prepare.cells import is_blank, name_key
from toolkit.prepare.objects import tidied
from toolkit.prepare.packed import ARROW, PARQUET, Opened
from toolkit.prepare.table import Row

UNREADABLE = "(cannot be read)"
BATCH = 1024  # rows of a parquet file that are read at once
_SHOWN_TYPE = 80  # characters of a column's type


def read_columnar(
    opened: Opened, wanted: frozenset[str], most: int | None = None
) -> tuple[list[str], Sequence[Row], bool]:
    """Return names, rows, and whether these are all: of a large file, the first `most` alone.

    A cell that has no value in Python, such as a date after the year 9999, is an error in a wanted column only. Raises
    ToolkitError where the file is broken.
    """
    import pyarrow as pa

    path, rows, count = opened.path, Spool[Row](), 0
    kind = "parquet" if opened.start().startswith(PARQUET) else "Arrow"
    try:
        with opened.stream() as stream:
            schema, batches = _batches(stream, opened.start())
            names = schema.names
            for batch in batches:
                batch.validate()
                columns = [
                    _cells(column, name, path, wanted) for name, column in zip(names, batch.columns, strict=True)
                ]
                for cells in zip(*columns, strict=True):
                    count += 1
                    if most is not None and count > most:
                        return *tidied(names, rows), False
                    if not all(map(is_blank, cells)):
                        rows.append(Row(count, None, dict(zip(names, cells, strict=True))))
    except UnicodeDecodeError as exc:
        name = exc.object.decode("utf-8", "backslashreplace")
        raise ToolkitError(
            f"`{path}` has a column whose name is not UTF-8: {name}",
            hint="rename the column and write the file again",
        ) from None
    except (pa.ArrowException, OSError, EOFError, MemoryError) as exc:
        if isinstance(exc, OSError) and exc.filename is not None:  # the rows have no room on the disk, say
            raise
        said = (str(exc) or "it asks for more memory than there is").splitlines()[0]
        raise ToolkitError(
            f"`{path}` is not a whole {kind} file: {said}",
            hint="the file is broken or truncated: copy or export it again",
        ) from None
    return *tidied(names, rows), True


def _batches(stream: IO[bytes], start: bytes) -> tuple[Any, Iterator[Any]]:
    """Return the schema of a file and its rows, some at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if start.startswith(PARQUET):
        file = pq.ParquetFile(stream)  # read_table refuses two columns of one name
        return file.schema_arrow, file.iter_batches(batch_size=BATCH)
    if start.startswith(ARROW):
        reader = pa.ipc.open_file(stream)
        return reader.schema, (reader.get_batch(number) for number in range(reader.num_record_batches))
    reader = pa.ipc.open_stream(stream)
    return reader.schema, iter(reader)


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
    """Return a column's cells, after a check: offsets of a damaged file would be followed to anywhere in the memory."""
    types = pa.types
    if types.is_dictionary(column.type):
        column = _checked(column.dictionary, pa).take(column.indices)  # which checks the indices
    column = _checked(column, pa)
    if types.is_large_binary(column.type):
        # Arrow does not check UTF-8 on reading, and to_pylist would raise on the first bad cell of all.
        return [None if cell is None else cell.decode("utf-8", "surrogateescape") for cell in column.to_pylist()]
    values: list[Any] = column.to_pylist()
    return [_decoded(value, column.type) for value in values] if "arrow.json" in str(column.type) else values


def _decoded(value: Any, kind: Any) -> Any:
    """Return a value with the JSON in it read: `datasets` writes it where values differ in type, as messages do.

    Numbers stay as they are written. Raises ValueError for JSON that cannot be read.
    """
    if getattr(kind, "extension_name", "") == "arrow.json":
        if value is None or value == "null":
            return None
        return parse_json(value, data=True) if value.startswith(('"', "[", "{")) else value
    if isinstance(value, list):
        return [_decoded(item, kind.value_type) for item in value]
    if isinstance(value, dict):
        return {part.name: _decoded(value[part.name], part.type) for part in kind}
    return value


def _checked(values: Any, pa: Any) -> Any:
    """Return values that are whole, texts as bytes; raises ArrowException for others."""
    types, kind = pa.types, values.type
    if types.is_fixed_size_binary(kind):
        values = values.cast(pa.binary())
    if any(check(values.type) for check in (types.is_string, types.is_large_string, types.is_binary)):
        values = values.cast(pa.large_binary())
    values.validate(full=True)
    return values
