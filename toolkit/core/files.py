"""Files that are whole or absent, their hashes, and records as JSON lines."""

import contextlib
import errno
import fcntl
import glob
import hashlib
import math
import os
import shutil
import tempfile
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeVar, overload

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json

Item = TypeVar("Item")


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


# Called with files that are whole and on the disk, by the names that they get next: target → temporary file.
BeforeRename = Callable[[Mapping[Path, Path]], None]
_listeners: list[BeforeRename] = []


@contextlib.contextmanager
def before_rename(listener: BeforeRename) -> Iterator[None]:
    """Call a function before each rename of finished files to their names, during the block."""
    _listeners.append(listener)
    try:
        yield
    finally:
        _listeners.remove(listener)


def announce(targets: Mapping[Path, Path]) -> None:
    """Tell the listeners which finished files are about to get their names."""
    for listener in _listeners:
        listener(targets)


@contextlib.contextmanager
def naming(path: Path, temporary: Path | None = None) -> Iterator[None]:
    """Let an OSError that names no file, or the temporary one, name the file that was to be written."""
    try:
        yield
    except OSError as exc:
        named = str(exc.filename) if exc.filename is not None else ""
        inside = temporary is not None and named.startswith(str(temporary))
        beside = os.path.abspath(named).startswith(os.path.abspath(path.with_name(f".{path.name}.")))  # noqa: PTH100
        if not named and exc.errno is not None and not isinstance(exc, ConnectionError | TimeoutError):
            exc.filename = str(path)
        elif inside or beside:
            exc.filename = str(path) + (named.removeprefix(str(temporary)) if inside else "")
            exc.filename2 = None
        raise


@contextlib.contextmanager
def writing(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a temporary file next to `path` and rename it there if the block succeeds; otherwise remove it."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        stack.enter_context(naming(path, part))
        encoding = None if "b" in mode else "utf-8"
        try:
            with os.fdopen(descriptor, mode, encoding=encoding) as file:
                lock(file.fileno(), fcntl.LOCK_EX)  # marks it as in use; released when the process ends
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.chmod(0o644)
            announce({path: part})
            part.replace(path)
        except BaseException:
            with contextlib.suppress(OSError):
                part.unlink(missing_ok=True)
            raise


@contextlib.contextmanager
def writing_folder(path: Path) -> Iterator[Path]:
    """Give a temporary folder next to `path` that takes its place if the block succeeds; otherwise it is removed.

    A former folder of that name is moved aside first and removed last, so there is always one whole folder.
    """
    with contextlib.ExitStack() as stack:
        stack.enter_context(naming(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part"))
        stack.enter_context(naming(path, fresh))
        former = path.with_name(f".{path.name}.old")
        descriptor = os.open(fresh, os.O_RDONLY)
        stack.callback(os.close, descriptor)
        try:
            lock(descriptor, fcntl.LOCK_EX)
            yield fresh
            fresh.chmod(0o755)
            written = [file for file in sorted(fresh.rglob("*")) if file.is_file()]
            for file in written:
                to_disk(file)
            announce({path / file.relative_to(fresh): file for file in written})
            shutil.rmtree(former, ignore_errors=True)
            if path.exists():
                path.replace(former)
            fresh.replace(path)
            shutil.rmtree(former, ignore_errors=True)
        except BaseException:
            with contextlib.suppress(OSError):
                if former.is_dir() and not path.exists():
                    former.replace(path)
            shutil.rmtree(fresh, ignore_errors=True)
            raise


def to_disk(path: Path) -> None:
    """Wait until a file or folder is on the disk, where its file system can tell."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path), _if_supported():  # fsync's own error names nothing
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(file: int, how: int) -> None:
    """Lock an open file as `fcntl.flock` does; on a file system without locks (a mounted drive, say) do nothing."""
    with _if_supported():
        fcntl.flock(file, how)


@contextlib.contextmanager
def _if_supported() -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        if exc.errno not in (errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.ENOLCK):
            raise


def clear_stale(paths: Iterable[Path]) -> None:
    """Remove what killed processes left half-written next to these files or folders, and restore a former folder.

    What another process is writing at this moment is locked by it, and left alone.
    """
    for path in paths:
        clear_parts(path.parent.glob(f".{glob.escape(path.name)}.*.part"), [path.with_name(f".{path.name}.old")])


def clear_parts(parts: Iterable[Path], formers: Iterable[Path]) -> None:
    """Remove half-written `parts` that nobody is writing, and restore `formers` that were never replaced."""
    for left in parts:
        with contextlib.suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            finally:
                os.close(descriptor)
    for former in formers:
        rightful = former.with_name(former.name.removeprefix(".").removesuffix(".old"))
        if former.is_dir():
            shutil.rmtree(former, ignore_errors=True) if rightful.exists() else former.replace(rightful)


@contextlib.contextmanager
def scratch_folder(kind: str) -> Iterator[Path]:
    """Give a folder among the temporary files, removed at the end.

    What killed processes left of this kind goes first; what is younger than a minute may not be locked yet.
    """
    old = time.time() - 60
    left = Path(tempfile.gettempdir()).glob(f"toolkit-{kind}-*.scratch")
    clear_parts((path for path in left if _changed(path) < old), [])
    with locked_folder(None, f"toolkit-{kind}-", ".scratch") as folder:
        yield folder


@contextlib.contextmanager
def locked_folder(place: Path | None, prefix: str, suffix: str) -> Iterator[Path]:
    """Give a temporary folder in `place`, None for the system's own, removed at the end.

    It is locked meanwhile, so that `clear_parts` of another process leaves it alone.
    """
    with tempfile.TemporaryDirectory(dir=place, prefix=prefix, suffix=suffix) as name:
        descriptor = os.open(name, os.O_RDONLY)
        try:
            lock(descriptor, fcntl.LOCK_EX)
            yield Path(name)
        finally:
            os.close(descriptor)


def _changed(path: Path) -> float:
    try:
        return path.lstat().st_mtime
    except OSError:  # another process has removed it
        return math.inf


def write_text(path: Path, text: str) -> None:
    """Write a text file (UTF-8) whole or not at all."""
    with writing(path) as file:
        file.write(text.encode("utf-8"))


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


def size_of_folder(folder: Path) -> int:
    """Return the bytes of all files below a folder, links left out; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())


def spread(records: Sequence[Item], count: int) -> list[Item]:
    """Choose at most `count` items evenly over a list of records: a file is often sorted by its source."""
    count = min(count, len(records))
    return [records[index * len(records) // count] for index in range(count)]
