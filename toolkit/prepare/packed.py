"""Open a data file that may be packed: gzip, Zstandard, or a zip with one data file. Headers are not trusted."""

import contextlib
import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.spool import temporary_file
from toolkit.formats.names import first_names
from toolkit.prepare.containers import EXTENSIONS, is_office, looks_like, quoted, unpack_several, untar

LARGEST = 2 * 10**9  # bytes that a packed file may unpack to
SMALL = 64 * 10**6  # bytes from which on it may also not unpack to more than
RATIO = 200  # times its size: text reaches 50, a file of one repeated byte 1,000
DEEPEST = 3  # files that are packed in each other
PIECE = 2**20
WHOLE = 32 * 2**20  # bytes of a text that is held in memory: MedQuAD's 2,479 rows have 3.5 MB
SHOWN = 6  # names in one line

GZIP, ZSTD, ZIP, EMPTY_ZIP = b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"PK\x03\x04", b"PK\x05\x06"
PARQUET, ARROW, ARROW_STREAM = b"PAR1", b"ARROW1", b"\xff\xff\xff\xff"
_WHOLE = (GZIP, ZSTD, ZIP, EMPTY_ZIP, PARQUET, ARROW)  # what cannot be read from its start alone
_BROKEN = "the file is broken or truncated: copy or export it again"


@dataclass(frozen=True)
class Opened:
    """A data file as it is read: `inner` names its format, `data` are its bytes; None where it is read from the disk.

    `unpacked` is the file on the disk that it was unpacked to, where it is large. Not `whole` where only its first
    bytes were asked for.
    """

    path: Path
    inner: Path
    data: bytes | None = None
    whole: bool = True
    unpacked: IO[bytes] | None = None

    @property
    def packed(self) -> bool:
        """Whether the bytes on the disk are others than those that are read."""
        return self.inner != self.path

    def stream(self) -> IO[bytes]:
        """Return its bytes as a file."""
        return self._place.open("rb") if self.data is None else io.BytesIO(self.data)

    @property
    def _place(self) -> Path:
        return self.path if self.unpacked is None else Path(f"/proc/self/fd/{self.unpacked.fileno()}")

    def size(self) -> int:
        """Return the number of its bytes."""
        return self._place.stat().st_size if self.data is None else len(self.data)

    def start(self, most: int = 512) -> bytes:
        """Return its first bytes, which tell what it is."""
        with self.stream() as file:
            return file.read(most)

    def content(self) -> bytes:
        """Return all its bytes."""
        return self.start(-1)


def open_data(path: Path, most: int | None = None) -> Opened:
    """Unpack a file where it is packed, and read it where it is a small text; of a large one `most` bytes, if not all.

    Raises ToolkitError where it is broken, unpacks to more than the limits above, or holds several data files.
    """
    opened = Opened(path, path)
    for _ in range(DEEPEST):
        inside = _inside(opened, most)
        if inside is None:
            large = most is None and opened.size() > WHOLE
            if opened.data is not None or large or opened.start().startswith((*_WHOLE, ARROW_STREAM)):
                return opened
            content = opened.start(-1 if most is None else most + 1)
            return Opened(path, opened.inner, content[:most], most is None or len(content) <= most)
        opened = inside
    raise ToolkitError(f"`{path}` is packed more than {DEEPEST} times", hint=_by_hand(path))


def _inside(opened: Opened, most: int | None) -> Opened | None:
    """Unpack once; None where nothing is packed, or where it is another program's zip."""
    path, start = opened.path, opened.start()
    if start.startswith((ZIP, EMPTY_ZIP)):
        return _only_member(opened, most)
    if not start.startswith((GZIP, ZSTD)):
        return None
    suffix = opened.inner.suffix.lower()
    inner = opened.inner if suffix in EXTENSIONS else opened.inner.with_suffix("")
    with opened.stream() as packed:
        stream = gzip.GzipFile(fileobj=packed) if start.startswith(GZIP) else _zstd(packed)
        found = _unpacked(stream, path, inner, most)
    if inner.suffix.lower() == ".tar" or suffix in (".tgz", ".tzst") or found.start()[257:262] == b"ustar":
        raise ToolkitError(f"`{path}` holds a tar archive", hint=untar(path))
    return found


def _zstd(packed: IO[bytes]) -> Any:
    import pyarrow  # the package zstandard ends in silence where a file breaks off

    return pyarrow.CompressedInputStream(pyarrow.PythonFile(packed, "r"), "zstd")


def _only_member(opened: Opened, most: int | None) -> Opened | None:
    """Unpack the one data file of a zip; None for a workbook, another program's file, or XML documents."""
    path = opened.path
    with opened.stream() as file, open_zip(file, path) as archive:
        names = archive.namelist()
        if is_office(names):
            return None
        found = members(archive)
        data = [item for item in found if is_data(item.filename)]
        if not data and any(item.filename.lower().endswith(".xml") for item in found):
            return None
        chosen = data if data or len(found) != 1 else found
        if not chosen:
            shown = first_names([item.filename for item in found], SHOWN) or "nothing"
            raise ToolkitError(
                f"`{path}` is a zip file without a data file: it holds {shown}",
                hint=f"a data file's name ends in one of {' '.join(EXTENSIONS)}",
            )
        if len(chosen) > 1:
            shown = first_names([item.filename for item in chosen], SHOWN)
            raise ToolkitError(
                f"`{path}` is a zip file of {len(chosen)} data files: {shown}",
                hint=unpack_several(path, [item.filename for item in chosen]),
            )
        left = [item.filename for item in found if item is not chosen[0]]
        if left:
            console.info(f"{path}: {chosen[0].filename} is read, not {first_names(left, SHOWN)}")
        with unpacking(path):
            stream = archive.open(chosen[0])
        return _unpacked(stream, path, Path(chosen[0].filename), most)


def is_data(name: str) -> bool:
    """Say whether a name inside a zip is that of a data file, packed again or not."""
    path = Path(name)
    if path.suffix.lower() in (".gz", ".zst"):
        path = path.with_suffix("")
    return path.suffix.lower() in EXTENSIONS


def members(archive: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """Return the files of a zip, without what macOS adds."""
    return [
        item
        for item in archive.infolist()
        if item.filename
        and not item.filename.endswith("/")
        and not item.filename.startswith("__MACOSX/")
        and not Path(item.filename).name.startswith(("._", ".DS_Store"))
    ]


def open_zip(file: IO[bytes], path: Path) -> zipfile.ZipFile:
    """Open a zip; raises ToolkitError if it is broken."""
    try:
        return zipfile.ZipFile(file)
    except (zipfile.BadZipFile, ValueError, NotImplementedError, OSError, EOFError) as exc:
        raise ToolkitError(f"`{path}` is not whole: {looks_like(ZIP, path)[0]}, and {exc}", hint=_BROKEN) from None


def check_members(archive: zipfile.ZipFile, path: Path) -> None:
    """Raise ToolkitError where the files of a zip together unpack to more than the limits, or one is broken."""
    total = 0
    for item in archive.infolist():
        with unpacking(path), archive.open(item) as stream:
            for piece in pieces(stream, path, total):
                total += len(piece)


def _unpacked(stream: Any, path: Path, inner: Path, most: int | None) -> Opened:
    """Read a stream up to the limits, into memory or onto the disk."""
    content, first = io.BytesIO(), b""
    large: IO[bytes] | None = None
    with unpacking(path), stream:
        for piece in pieces(stream, path):
            first = first or piece[:8]
            (content if large is None else large).write(piece)
            if most is not None and content.tell() > most and not first.startswith(_WHOLE):
                return Opened(path, inner, content.getvalue()[:most], whole=False)
            if most is None and large is None and content.tell() > WHOLE:
                large = temporary_file()
                large.write(content.getbuffer())
    if large is None:
        return Opened(path, inner, content.getvalue())
    large.flush()
    return Opened(path, inner, unpacked=large)


@contextlib.contextmanager
def unpacking(path: Path) -> Iterator[None]:
    """Turn the errors of a packed file that is damaged into ToolkitError."""
    try:
        yield
    except ToolkitError:
        raise
    except RuntimeError as exc:  # a password, or a compression that Python does not know
        if "password" in str(exc):
            raise ToolkitError(
                f"`{path}` has a password",
                hint=f"unpack it by hand, such as `7z x {quoted(path)}`, and set `data.source` to the file inside",
            ) from None
        raise ToolkitError(f"`{path}` cannot be unpacked here: {exc}", hint=_by_hand(path)) from None
    except Exception as exc:
        if not isinstance(exc, zlib.error | zipfile.BadZipFile | OSError | EOFError | ValueError | struct.error):
            raise
        if isinstance(exc, OSError) and exc.filename is not None:  # what it is unpacked to has no room, say
            raise
        with path.open("rb") as file:
            found = looks_like(file.read(512), path)[0]
        raise ToolkitError(f"`{path}` is not whole: {found}, and unpacking says: {exc}", hint=_BROKEN) from None


def pieces(stream: IO[bytes], path: Path, before: int = 0) -> Iterator[bytes]:
    """Yield what a stream unpacks to, `before` bytes of the same file behind it; raises ToolkitError at the limits."""
    total, most = before, min(LARGEST, max(SMALL, RATIO * path.stat().st_size))
    while piece := stream.read(PIECE):
        total += len(piece)
        if total > most:
            times = "" if most == LARGEST else f", or {RATIO} times its size"
            raise ToolkitError(
                f"`{path}` unpacks to more than {console.size(most)}{times}: it is not read any further",
                hint=f"if it is what it should be, unpack it by hand: {_by_hand(path)}",
            )
        yield piece


def _by_hand(path: Path) -> str:
    return looks_like(path.read_bytes(), path)[1]
