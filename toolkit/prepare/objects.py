"""From JSON to rows: a list of objects, one object per line, or columns as data frames write them."""

import contextlib
import json
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json
from toolkit.core.spool import Spool
from toolkit.prepare.cells import CHATS, is_blank, tidy_name
from toolkit.prepare.containers import quoted, with_fresh_file
from toolkit.prepare.decoding import Text
from toolkit.prepare.hints import hint_for_nested, is_record
from toolkit.prepare.messages import kind_of
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
    if not text.content.whole and (found := _part_of(text)):
        return _rows(found)
    if text.content.data is None:  # too large to be held in memory, if it is a list or has many lines
        with contextlib.suppress(ValueError, RecursionError):
            return _rows((None, item) for _, item in _each_value(text, "["))
        if text.start().lstrip().startswith("{"):
            with contextlib.suppress(_BrokenError):
                columns, rows = _one_or_many(text, path)
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


def _part_of(text: Text) -> list[tuple[int | None, Any]]:
    """Return the whole values, with lines, of a text that breaks off; where its first one does, the rows of its list.

    Returns nothing where the text does not break off, is broken before, or has rows of another form.
    """
    found: list[tuple[int | None, Any]] = []
    try:
        for value in _each_value(text):
            found.append(value)
        return []
    except _BrokenError as broken:
        exc = broken.__cause__
        if not isinstance(exc, json.JSONDecodeError):
            return []
        if not exc.msg.startswith("Unterminated") and len(exc.doc.rstrip()) - exc.pos > len("-Infinity"):
            return []
    if found:
        return found
    before, _, _ = text.start(-1).partition("[")
    if before.count("{") > 1:  # a list inside a record
        return []
    with contextlib.suppress(ValueError, RecursionError):
        for _, item in _each_value(text.without(len(before)), "["):
            found.append((None, item))
    return found if any(isinstance(item, dict) or kind_of(item) == "messages" for _, item in found) else []


def _each_value(text: Text, opening: str = "") -> Iterator[tuple[int, Any]]:
    """Yield values and the lines where they begin, a piece of the text after the other.

    With "[" as `opening` they are the items of a list, else values with blanks or commas between. Raises ValueError for
    anything else.
    """
    # It finds where a value ends; numbers of any length are left to `_value`.
    decoder = json.JSONDecoder(parse_int=str, parse_float=str)
    blanks = re.compile(r"[ \t\r\n]*" if opening else r"[\s,]*")
    window, at, line, counted, first = "", 0, 1, 0, True
    by_line = not opening  # as long as each value is a line, which need not be read twice
    with text.open() as file:

        def more() -> bool:
            """Read on behind what is left of the window."""
            nonlocal window, at, line, counted
            if piece := file.read(max(PIECE, len(window) - at)):
                line += window.count("\n", counted, at)
                window, at, counted = window[at:] + piece, 0, 0
            return bool(piece)

        def mark() -> str:
            """Return the next character that is no blank."""
            nonlocal at
            while True:
                at = blanks.match(window, at).end()  # type: ignore[union-attr]
                if at < len(window) or not more():
                    return window[at : at + 1]

        def ending() -> int:
            """Return where the value ends."""
            while True:
                try:
                    end = decoder.raw_decode(window, at)[1]
                except (ValueError, RecursionError):
                    end = len(window)
                if end + 2 < len(window) or not more():  # the value may go on there, 1 as 1.5 or 1e-3
                    return end

        if opening and mark() != opening:
            raise ValueError("it is no list")
        at += len(opening)
        while (found := mark()) != ("]" if opening else ""):
            if opening and not first:
                if found != ",":
                    raise ValueError("no comma")
                at += 1
                mark()
            first = False
            line, counted = line + window.count("\n", counted, at), at
            end = window.find("\n", at) if by_line else -1
            if end >= 0:
                try:
                    value = _value(window[at:end])
                except (ValueError, RecursionError):
                    by_line = False
            if end < 0 or not by_line:
                end = ending()
                try:
                    value = _value(window[at:end])
                except (ValueError, RecursionError) as exc:
                    raise _BrokenError(line) from exc
            yield line, value
            at = end
        at += 1
        if mark():
            raise ValueError("extra data")


class _BrokenError(ValueError):
    """A value that cannot be read begins at this line; the cause says why."""


def read_jsonl_rows(text: Text, path: Path) -> tuple[list[str], Sequence[Row]]:
    """Read one JSON object per line, or objects over several lines; empty lines are not rows. A list is read too."""
    try:
        return _one_or_many(text, path)
    except _BrokenError as broken:
        if not text.content.whole and (found := _part_of(text)):
            return _rows(found)
        number, exc = broken.args[0], broken.__cause__
    if isinstance(exc, json.JSONDecodeError):
        raise ToolkitError(
            f"`{path}` line {number:,} is not JSON: {exc.msg}",
            hint=_not_json(exc, path, _REWRITE_LINES)
            or "every line must be one JSON object; the last line of a truncated file is incomplete",
        )
    raise ToolkitError(f"`{path}` line {number:,} cannot be read: {exc}", hint=_beyond_bounds(exc))


def _one_or_many(text: Text, path: Path) -> tuple[list[str], Sequence[Row]]:
    """Return the rows of values that follow each other, or of the one that holds them all."""
    values = _each_value(text)
    first = [*islice(values, 2)]
    if len(first) == 1 and (records := _records(first[0][1], path)) != [first[0][1]]:
        return _rows((None, item) for item in records)
    return _rows(chain(first, values))


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


def _beyond_bounds(exc: BaseException | None) -> str:
    """Return what to do about JSON that is whole and has a value that no row has."""
    if "digits" in str(exc):
        return "write that number as text, in quotes, or leave it out"
    return 'leave it out, or write it as text: a row is an object of texts, such as {"question": "…", "answer": "…"}'


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
