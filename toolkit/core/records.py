"""The records of a prepared split, as JSON lines: read one by one, or by their number, from the disk."""

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json

Item = TypeVar("Item")


class Records(Sequence[dict[str, Any]]):
    """The records of one split, read from the disk when they are asked for: 8 bytes of each are in memory.

    All are looked at once, as `each_record` does.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ends = array("Q", [0])
        for end, _ in _placed_records(path, 0, None):
            self._ends.append(end)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return each_record(self._path)

    @overload
    def __getitem__(self, index: int) -> dict[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> list[dict[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> dict[str, Any] | list[dict[str, Any]]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        found = next(each_record(self._path, self._ends[number], self._ends[number + 1]), None)
        if found is None:
            raise ToolkitError(f"`{self._path}` became shorter while it was read", hint="run the same command again")
        return found


def each_record(path: Path, start: int = 0, end: int | None = None) -> Iterator[dict[str, Any]]:
    """Yield the records of one split; raises ToolkitError if it is missing or a line is no record with three texts.

    A record of a chat has `history` too: its earlier turns, each a list of question and answer. `start` and `end` are
    the bytes where a line begins, of a part of the file.
    """
    return (record for _, record in _placed_records(path, start, end))


def _placed_records(path: Path, start: int, end: int | None) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the byte behind each record's line, and the record."""
    number, place = 0, start
    try:
        # Lines end at \n alone: JSON leaves U+2028 and U+0085 in a text as they are, where splitlines() would cut.
        with path.open("rb") as file:
            file.seek(start)
            for line in file:
                if end is not None and place >= end:
                    return
                number, place = number + 1, place + len(line)
                yield place, _record(parse_json(line))
    except FileNotFoundError:
        raise ToolkitError(f"no prepared data `{path}`", hint="write it with `toolkit prepare`") from None
    except (ValueError, TypeError) as exc:
        raise ToolkitError(
            f"`{path}` line {number} is not a record: {exc}",
            hint="write it again with `toolkit prepare --force`",
        ) from None


def _record(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("it is not a JSON object")
    missing = [key for key in ("instruction", "input", "output") if not isinstance(value.get(key), str)]
    if missing:
        raise TypeError(f"`{missing[0]}` is not text")
    history = value.get("history", [])
    if not isinstance(history, list) or not all(map(_is_turn, history)):
        raise TypeError("`history` is not a list of questions with their answers")
    return value


def _is_turn(turn: Any) -> bool:
    return isinstance(turn, list) and len(turn) == 2 and all(isinstance(text, str) for text in turn)


def spread(records: Sequence[Item], count: int) -> list[Item]:
    """Choose at most `count` items evenly over a list of records: a file is often sorted by its source."""
    count = min(count, len(records))
    return [records[index * len(records) // count] for index in range(count)]
