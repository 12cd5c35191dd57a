"""Long lists whose items are mostly kept on the disk."""

import io
import os
import pickle
import tempfile
from array import array
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Generic, TypeVar, overload

from toolkit.core.files import naming
from toolkit.core.places import temporary_folder

KEPT = 4096  # items that stay in memory, as long as they have
KEPT_BYTES = 1 << 24  # no more bytes than this
NEAR = 64  # items that may be left out between two that are read together
READ = 1 << 20  # bytes that are read from the disk at once, or one item that is larger
WRITTEN = 1 << 18  # bytes that are written at once

Item = TypeVar("Item")


class Spool(Sequence[Item], Generic[Item]):
    """A list whose items, but for the first, are pickled in a nameless temporary file: what is read is a copy.

    Nothing is left behind by a process that is killed. It is for one thread.
    """

    def __init__(self, items: Iterable[Item] = ()) -> None:
        self._kept: list[Item] = []
        self._room = KEPT_BYTES
        self._ends = array("Q", [0])
        self._file: IO[bytes] | None = None
        self.extend(items)

    def __reduce__(self) -> tuple[type["Spool[Item]"], tuple[list[Item]]]:
        return Spool, ([*self],)

    def append(self, item: Item) -> None:
        """Add an item at the end."""
        content = pickle.dumps(item, pickle.HIGHEST_PROTOCOL)
        if self._file is None:
            self._room -= len(content)
            if len(self._kept) < KEPT and self._room >= 0:
                self._kept.append(item)
                return
            self._file = temporary_file()
        self._file.write(content)
        self._ends.append(self._ends[-1] + len(content))

    def extend(self, items: Iterable[Item]) -> None:
        """Add items at the end."""
        for item in items:
            self.append(item)

    def __len__(self) -> int:
        return len(self._kept) + len(self._ends) - 1

    def __iter__(self) -> Iterator[Item]:
        return self.some(range(len(self)))

    def some(self, numbers: Iterable[int]) -> Iterator[Item]:
        """Yield the items of some numbers from 0 on, in their order; near ones are read together."""
        first = last = 0
        before = -NEAR - 1  # one item alone is read alone
        content = memoryview(b"")
        for number in numbers:
            at = number - len(self._kept)
            if at < 0:
                yield self._kept[number]
                continue
            if not first <= at < last:
                first, last = at, at + 1
                if 0 <= at - before <= NEAR:
                    last = max(last, bisect_right(self._ends, self._ends[at] + READ) - 1)
                content = memoryview(self._read(self._ends[first], self._ends[last]))
            before, start = at, self._ends[first]
            yield pickle.loads(content[self._ends[at] - start : self._ends[at + 1] - start])

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> list[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | list[Item]:
        if isinstance(index, slice):
            return [*self.some(range(len(self))[index])]
        return next(self.some([range(len(self))[index]]))

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
        if isinstance(self._items, Spool):
            return self._items.some(self._numbers)
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
