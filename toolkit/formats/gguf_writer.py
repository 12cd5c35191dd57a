"""Write GGUF files as streams: the header first, then each tensor's bytes as they come, hashed while written.

The `gguf` package lays out the header; its own data section is not used, because one stream of bytes goes to several
files at once here. Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import hashlib
import io
import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from gguf import GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType, GGUFValueType, GGUFWriter
from gguf.gguf_writer import WriterState

from toolkit.core.files import writing
from toolkit.formats.ggml_types import stored_size

# GGUF's key-value pairs, each with its type.
Metadata = dict[str, tuple[Any, GGUFValueType]]

AHEAD = 8  # chunks that wait to be written, at most


def padded(size: int) -> int:
    """Round a number of bytes up to GGUF's alignment."""
    alignment: int = GGUF_DEFAULT_ALIGNMENT
    return -(-size // alignment) * alignment


def header(
    architecture: str | None, metadata: Metadata, tensors: Sequence[tuple[str, tuple[int, ...], GGMLQuantizationType]]
) -> bytes:
    """Return everything before the first tensor: metadata, then name, shape (out, in), type and place of each.

    The data section must hold the tensors in this order, each padded to the alignment. Files that belong to no
    architecture (importance matrices) name none.
    """
    writer = GGUFWriter(None, architecture or "")
    if architecture is None:
        writer.kv_data[0].clear()
    for key, (value, kind) in metadata.items():
        writer.add_key_value(key, value, kind)
    for name, shape, kind in tensors:
        writer.add_tensor_info(name, shape, np.dtype(np.float32), stored_size(kind, shape), raw_dtype=kind)
    buffer = io.BytesIO()
    # The writer opens files by path only; given its open file, it continues from there.
    writer.fout, writer.state = [buffer], WriterState.EMPTY
    general = writer._pack_val

    def pack(value: Any, kind: GGUFValueType, add_vtype: bool, sub_type: GGUFValueType | None = None) -> bytes:
        quick = _packed_list(value) if kind == GGUFValueType.ARRAY and sub_type is None else None
        return general(value, kind, add_vtype, sub_type) if quick is None else quick

    writer._pack_val = pack  # a vocabulary takes it seconds, value by value
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    return buffer.getvalue().ljust(padded(buffer.tell()), b"\0")


def _packed_list(values: Any) -> bytes | None:
    """Return a list of texts, integers or floats as the writer packs it with its type; None for any other."""
    kinds = {type(value) for value in values} if isinstance(values, list) else set()
    if kinds == {str}:
        kind, raw = GGUFValueType.STRING, [value.encode("utf-8") for value in values]
        content = b"".join(part for text in raw for part in (struct.pack("<Q", len(text)), text))
    elif kinds == {int} and min(values) >= -(2**31) and max(values) < 2**31:
        kind, content = GGUFValueType.INT32, np.array(values, "<i4").tobytes()
    elif kinds == {float}:
        kind, content = GGUFValueType.FLOAT32, np.array(values, "<f4").tobytes()
    else:
        return None
    return struct.pack("<IIQ", GGUFValueType.ARRAY, kind, len(values)) + content


class GgufFile:
    """One output in progress, written and hashed by its own thread; `size` counts the bytes given so far."""

    def __init__(self, file: IO[bytes], path: Path, thread: ThreadPoolExecutor) -> None:
        self.path = path
        self.size = 0
        self.failed = False
        self._file = file
        self._thread = thread
        self._hash = hashlib.sha256()
        self._waiting: deque[Future[None]] = deque()

    @property
    def place(self) -> Path:
        """Where the bytes can be read until the file appears under its name."""
        return Path(f"/dev/fd/{self._file.fileno()}")

    def begin(self, name: str) -> None:
        """Say which tensor comes next: the one after the last."""

    def write(self, data: Any) -> None:
        """Append bytes, which must not change from now on; an OSError, perhaps of an earlier call, names the target."""
        self.size += len(data)
        self._waiting.append(self._thread.submit(self._write, data))
        while len(self._waiting) > AHEAD:
            self._waiting.popleft().result()

    def pad(self) -> None:
        """Fill up to the alignment, as after every tensor."""
        if self.size % padded(1):
            self.write(b"\0" * (padded(self.size) - self.size))

    def sync(self) -> None:
        """Flush everything to the disk, which may still be full."""
        self.finish()
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, str(self.path)) from None

    def finish(self) -> None:
        """Wait until everything given is written; an OSError names the target, not its temporary file."""
        while self._waiting:
            self._waiting.popleft().result()

    @property
    def sha256(self) -> str:
        """The SHA-256 of what was given, in hexadecimal."""
        self.finish()
        return self._hash.hexdigest()

    def _write(self, data: Any) -> None:
        try:
            self._file.write(data)
        except OSError as exc:
            self.failed = True
            raise OSError(exc.errno, exc.strerror, str(self.path)) from None
        self._hash.update(data)


@contextmanager
def gguf_file(path: Path) -> Iterator[GgufFile]:
    """Open an output that appears under its name only if the block succeeds."""
    made = None
    try:
        with writing(path) as file, ThreadPoolExecutor(1) as thread:
            made = GgufFile(file, path, thread)
            try:
                yield made
                made.finish()
            except BaseException:
                thread.shutdown(cancel_futures=True)
                raise
    except OSError as exc:
        if made and made.failed and exc.filename is None:  # closing the file met it again
            raise OSError(exc.errno, exc.strerror, str(path)) from None
        raise
