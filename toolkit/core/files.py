"""Files that are whole or absent, and their hashes."""

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
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any


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


def size_of_folder(folder: Path) -> int:
    """Return the bytes of all files below a folder, links left out; 0 where there is none."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
