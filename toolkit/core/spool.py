"""Lists of so many items that most of them are kept on the disk."""

import io
import os
import pickle
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

from toolkit.core.files import naming
from toolkit.core.places import temporary_folder

KEPT = 4096  # items that stay in memory
READ = 1 << 20  # bytes that are read from the disk at once, or one item that is larger
WRITTEN = 1 << 18  # bytes that are written at once

Item = TypeVar("Item")


class Spool(Sequence[Item], Generic[Item]):
    """A list whose items, but for the first, are pickled in a nameless temporary file: what is read is a copy.

    Nothing is left behind by a process that is killed. It is for one thread.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._kept: list[Item] = []
        self._ends = array("Q", [0])
        self._file: IO[bytes] | None = None
        self.extend(items)

    def __reduce__(self) -> tuple[type["Spool[Item]"], tuple[list[Item]]]:
        return Spool, ([*self],)

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        if len(self._kept) < KEPT:
            self._kept.append(item)
            return
        if self._file is None:
            self._file = temporary_file()
        content = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end."""
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._kept) + len(self._ends) - 1

    def __iter__(self) -> Iterator[Item]:
        yield from self._kept
        first = 0
        while first < len(self._ends) - 1:
            last = max(first + 1, bisect_right(self._ends, self._ends[first] + READ) - 1)
            ends = self._ends[first : last + 1]
            first = last
            content = memoryview(self._read(ends[0], ends[-1]))
            for start, end in zip(ends, islice(ends, 1, None), strict=False):
                yield pickle.loads(content[start - ends[0] : end - ends[0]])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self[number] for number in range(len(self))[index]]
        number = range(len(self))[index]
        if number < len(self._kept):
            return self._kept[number]
        start, end = self._ends[number - len(self._kept) : number - len(self._kept) + 2]
        item: Item = pickle.loads(self._read(start, end))
        return item

    def _read(self, start: int, end: int) -> bytes:
        if self._file is None:
            return b""
        self._file.flush()
        return os.pread(self._file.fileno(), end - start, start)


class Chosen(Sequence[Item], Generic[Item]):
    """Some items of a sequence, by their numbers in it."""

    def __init__(self, items: Sequence[Item], numbers: "array[int]") -> None:
        self._items, self._numbers = items, numbers

    def __len__(self) -> int:
        return len(self._numbers)

    def __iter__(self) -> Iterator[Item]:
        return (self._items[number] for number in self._numbers)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [self._items[number] for number in self._numbers[index]]
        return self._items[self._numbers[index]]


def temporary_file() -> IO[bytes]:
    """Return an empty file without a name in `temporary_folder`; an OSError of writing names that folder."""
    place = temporary_folder()
    with tempfile.TemporaryFile(dir=place, buffering=0) as unnamed:
        return io.BufferedRandom(_Placed(place, os.dup(unnamed.fileno())), WRITTEN)


class _Placed(io.FileIO):
    """A file without a name, whose errors name its folder."""

    def __init__(self, place: Path, descriptor: int) -> None:
        super().__init__(descriptor, "r+b")
        self.place = place

    def write(self, data: Any, /) -> int:
        with naming(self.place):
            return super().write(data)
