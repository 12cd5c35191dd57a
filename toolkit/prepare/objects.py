"""From JSON to rows: a list of objects, one object per line, or columns as data frames write them."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json
from toolkit.core.spool import Spool
from toolkit.prepare.cells import CHATS, is_blank, tidy_name
from toolkit.prepare.containers import quoted, with_fresh_file
from toolkit.prepare.decoding import Text
from toolkit.prepare.messages import kind_of
from toolkit.prepare.nested import hint_for_nested, is_record
from toolkit.prepare.packed import PIECE
from toolkit.prepare.table import Row

NOT_AN_OBJECT = "not a JSON object"

_RECORDS = (
    'write a list of objects such as [{"question": "…", "answer": "…"}] (pandas: `to_json(FILE, orient="records")`)'
)

_REWRITE_WHOLE = "print(json.dumps(ast.literal_eval(sys.stdin.read())))"
_REWRITE_LINES = "[print(json.dumps(ast.literal_eval(line))) for line in sys.stdin if line.strip()]"


class _Twice(dict[str, Any]):
    """An object that has names twice, of which Python's dict would silently drop the first."""

    names: list[str]


def _record(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of names and values."""
    found = dict(pairs)
    if len(found) == len(pairs):
        return found
    names = [name for name, _ in pairs]
    twice = _Twice(found)
    twice.names = [name for name in found if names.count(name) > 1]
    return twice


def _value(text: str) -> Any:
    return parse_json(text, data=True, pairs=_record)


def _rows(items: Iterable[tuple[int | None, Any]]) -> tuple[list[str], Sequence[Row]]:
    """Return names and rows; objects without values are not rows. A name is listed twice if an object has it so."""
    columns: dict[str, None] = {}
    twice: dict[str, None] = {}
    rows = Spool[Row]()
    for number, (line, item) in enumerate(items, start=1):
        if isinstance(item, list) and kind_of(item) == "messages":
            item = {CHATS[0]: item}
        if not isinstance(item, dict):
            rows.append(Row(number, line, {}, NOT_AN_OBJECT, json.dumps(item, ensure_ascii=False)))
        elif not all(map(is_blank, item.values())):
            columns.update(dict.fromkeys(item))
            if isinstance(item, _Twice):
                twice.update(dict.fromkeys(item.names))
            rows.append(Row(number, line, dict(item)))
    return tidied([*columns, *twice], rows)


def tidied(columns: list[str], rows: Sequence[Row]) -> tuple[list[str], Sequence[Row]]:
    """Return names and rows with what cannot be seen taken out of the names."""
    names = {name: tidy_name(name) for name in columns}
    if all(raw == name for raw, name in names.items()):
        return columns, rows
    return [names[name] for name in columns], Spool(
        Row(row.number, row.line, {names[name]: cell for name, cell in row.values.items()}, row.problem, row.text)
        for row in rows
    )


def read_json_rows(text: Text, path: Path) -> tuple[list[str], Sequence[Row]]:
    """Read a list of objects, an object that holds one list, columns, or one object per line."""
    if not isinstance(text.content, str):  # too large to be held in memory, if it is a list or has many lines
        with contextlib.suppress(ValueError, RecursionError):
            return _rows((None, item) for item in _items(text))
        if text.start().lstrip().startswith("{"):
            with contextlib.suppress(_NotByLine):
                columns, rows = _by_line(text, path)
                if len(rows) > 1:
                    return columns, rows
    content = text.start(-1)
    try:
        value = _value(content)
    except json.JSONDecodeError as exc:
        if exc.msg == "Extra data" and content.lstrip()[:1] in ("{", "["):
            return read_jsonl_rows(text, path)
        raise ToolkitError(
            f"`{path}` is not valid JSON: {exc.msg} at line {exc.lineno:,}, column {exc.colno:,}",
            hint=_not_json(exc, path, _REWRITE_WHOLE) or "the file is broken or truncated: export it again",
        ) from None
    except (RecursionError, ValueError) as exc:
        raise ToolkitError(f"`{path}` cannot be read as JSON: {exc}", hint=_beyond_bounds(exc)) from None
    return _rows((None, item) for item in _records(value, path))


def _items(text: Text) -> Iterator[Any]:
    """Yield the items of a list, a piece of the text after the other; raises ValueError for anything else."""
    decoder, blanks = json.JSONDecoder(), re.compile(r"[ \t\r\n]*")
    with text.open() as file:
        window, at, expected = file.read(PIECE), 0, "["

        def mark() -> str:
            """Return the next character that is no blank."""
            nonlocal window, at
            while True:
                at = blanks.match(window, at).end()  # type: ignore[union-attr]
                if at < len(window):
                    return window[at]
                window, at = file.read(PIECE), 0
                if not window:
                    return ""

        while True:
            if (found := mark()) == "]" and expected != "[":
                at += 1
                break
            if found != expected:
                raise ValueError(f"no {expected}")
            at += 1
            if expected == "[" and mark() == "]":
                at += 1
                break
            mark()
            expected = ","
            while True:
                try:
                    _, end = decoder.raw_decode(window, at)
                except ValueError:
                    end = len(window)
                if end < len(window):
                    break
                more = file.read(max(PIECE, len(window)))  # the value may go on there
                if not more:
                    raise ValueError("it ends inside an item")
                window, at = window[at:] + more, 0
            yield _value(window[at:end])
            at = end
        if mark():
            raise ValueError("extra data")


class _NotByLine(Exception):
    """A line is not one JSON value."""


def read_jsonl_rows(text: Text, path: Path) -> tuple[list[str], Sequence[Row]]:
    """Read one JSON object per line; empty lines are not rows. A list, or objects over several lines, are read too."""
    try:
        return _by_line(text, path)
    except _NotByLine as found:
        whole = _not_by_line(text.start(-1), path)
        if whole is not None:
            return whole
        number, exc = found.args
    if isinstance(exc, json.JSONDecodeError):
        raise ToolkitError(
            f"`{path}` line {number:,} is not JSON: {exc.msg}",
            hint=_not_json(exc, path, _REWRITE_LINES)
            or "every line must be one JSON object; the last line of a truncated file is incomplete",
        )
    raise ToolkitError(f"`{path}` line {number:,} cannot be read: {exc}", hint=_beyond_bounds(exc))


def _by_line(text: Text, path: Path) -> tuple[list[str], Sequence[Row]]:
    first: list[Any] = []

    def found() -> Iterator[tuple[int, Any]]:
        # Not splitlines(): JSON strings may hold U+2028 and others that it takes for line ends.
        for number, line in enumerate(text.lines("\n"), start=1):
            if not line.strip():
                continue
            try:
                value = _value(line.removesuffix("\n"))
            except (ValueError, RecursionError) as exc:
                raise _NotByLine(number, exc) from None
            if len(first) < 2:
                first.append(value)
            yield number, value

    rows = _rows(found())
    if len(first) == 1:
        records = _records(first[0], path)
        if records != first:
            return _rows((None, item) for item in records)
    return rows


def _not_json(exc: json.JSONDecodeError, path: Path, rewrite: str) -> str:
    """Return what to do about text that is nearly JSON, "" if unknown; `rewrite` is Python for Python's own values."""
    before, rest = exc.doc[: exc.pos].rstrip(), exc.doc[exc.pos :]
    if rest.startswith(("'", "None", "True", "False")):
        command = f"python -c {shlex.quote(f'import ast, json, sys; {rewrite}')} < {quoted(path)}"
        return f"it is written as Python prints its values; write it as JSON: {with_fresh_file(command, path.name)}"
    end = rest.removeprefix(",").lstrip()[:1]
    if end in ("]", "}") and (rest.startswith(",") or before.endswith(",")):
        return f"remove the comma in front of that `{end}`"
    return ""


def _beyond_bounds(exc: Exception) -> str:
    """Return what to do about JSON that is whole and has a value that no row has."""
    if "digits" in str(exc):
        return "write that number as text, in quotes, or leave it out"
    return 'leave it out, or write it as text: a row is an object of texts, such as {"question": "…", "answer": "…"}'


def _not_by_line(text: str, path: Path) -> tuple[list[str], Sequence[Row]] | None:
    """Read values one after the other, with blanks or a comma between; None if the text holds something else."""
    found: list[tuple[int, Any]] = []
    decoder = json.JSONDecoder()
    position, line, counted = 0, 1, 0
    while True:
        while position < len(text) and text[position] in " \t\r\n,":
            position += 1
        if position == len(text):
            break
        line, counted = line + text.count("\n", counted, position), position
        try:
            _, position = decoder.raw_decode(text, position)
            found.append((line, _value(text[counted:position])))
        except (ValueError, RecursionError):
            return None
    if len(found) == 1:
        return _rows((None, item) for item in _records(found[0][1], path))
    return _rows(found)


def _records(value: Any, path: Path) -> list[Any]:
    """Find the records in a whole file's value; raises ToolkitError if there are none."""
    if isinstance(value, list):
        return value
    if isinstance(value, dict):
        names, cells = value.get("columns"), value.get("data")
        if _is_text(names) and _is_text_rows(cells, len(names)):  # pandas: orient="split"
            return [_record([(str(name), cell) for name, cell in zip(names, row, strict=True)]) for row in cells]
        columns = _columns(value)
        if columns:
            names = list(columns)
            return [dict(zip(names, cells, strict=True)) for cells in zip(*columns.values(), strict=True)]
        lists = [item for item in value.values() if isinstance(item, list) and not _is_text(item)]
        if len(lists) == 1 and not is_record(value):
            return lists[0]
        if not lists or is_record(value):
            return _by_name(value) or [value]
    inside = hint_for_nested(value, path)
    raise ToolkitError(f"`{path}` holds no list of records", hint=inside or _RECORDS)


def _by_name(value: dict[str, Any]) -> list[Any] | None:
    """Return the rows of an object of rows by number or name (pandas: orient="index"): all have the same cells."""
    rows = list(value.values())
    if not rows or not all(isinstance(row, dict) and row for row in rows):
        return None
    names = rows[0].keys()
    cells = [cell for row in rows for cell in row.values()]
    same = all(row.keys() == names for row in rows) and not any(isinstance(cell, dict) for cell in cells)
    return rows if same and (len(rows) > 1 or next(iter(value)).isdecimal()) else None


def _is_text(items: Any) -> TypeGuard[list[Any]]:
    """Say whether a value is a list of texts or numbers, not of records."""
    return isinstance(items, list) and bool(items) and all(isinstance(item, str | int | float) for item in items)


def _is_text_rows(rows: Any, width: int) -> TypeGuard[list[list[Any]]]:
    return isinstance(rows, list) and all(isinstance(row, list) and len(row) == width for row in rows)


def _columns(value: dict[str, Any]) -> dict[str, list[Any]] | None:
    """Return a data frame's columns: of pandas, an object of cells by row number each; of datasets, a list each."""
    if len(value) < 2:
        return None
    parts = list(value.values())
    if all(isinstance(part, dict) and part for part in parts):
        keys = list(parts[0])
        if all(key.isdecimal() for key in keys) and all(list(part) == keys for part in parts):
            return {name: list(part.values()) for name, part in value.items()}
    if all(isinstance(part, list) and part and not isinstance(part[0], dict) for part in parts):
        return dict(value) if len({len(part) for part in parts}) == 1 else None
    return None
