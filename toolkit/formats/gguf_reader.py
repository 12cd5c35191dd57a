"""Read the header of a GGUF file, and the values of its tensors; every count and length is checked against the
file's real size.

The `gguf` package's reader trusts them, and takes ten seconds for a vocabulary of 128,256 tokens.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import contextlib
import functools
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType
from gguf.quants import dequantize

from toolkit.core.errors import ToolkitError
from toolkit.formats.ggml_types import BASE
from toolkit.formats.names import visible

SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY = 8, 9
LONGEST_ARRAY = 1 << 24  # values; a vocabulary of 256,000 tokens has 512,000 merges
HEADERS = (1 << 20, 16 << 20, 256 << 20)  # bytes tried; a vocabulary of 256,000 tokens takes about 10 MB


@dataclass(frozen=True)
class GgufTensor:
    """One tensor: its shape in numpy's order, type, and bytes `offset` to `offset + size` of the file."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    offset: int
    size: int


@dataclass(frozen=True)
class GgufData:
    """What the header of a GGUF file says."""

    metadata: dict[str, Any]
    tensors: dict[str, GgufTensor]


class _Cursor:
    """A position in the header's bytes; reading past their end is an error, whatever a length says."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.place = 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.place:
            raise ValueError(f"it ends in its header, at byte {len(self.data)}")
        self.place += count
        return self.data[self.place - count : self.place]

    def scalars(self, code: str, count: int) -> tuple[Any, ...]:
        return struct.unpack(f"<{count}{code}", self.take(struct.calcsize(f"<{code}") * count))

    def text(self) -> str:
        return self.take(self.scalars("Q", 1)[0]).decode("utf-8")

    def texts(self, count: int) -> list[str]:
        """Return so many texts; without a call for each, since a vocabulary has some hundred thousand."""
        data, place, found = self.data, self.place, []
        for _ in range(count):
            length = int.from_bytes(data[place : place + 8], "little")
            if length > len(data) - place - 8:
                raise ValueError(f"it ends in its header, at byte {len(data)}")
            place += 8 + length
            found.append(data[place - length : place].decode("utf-8"))
        self.place = place
        return found

    def value(self, kind: int, depth: int = 0) -> Any:
        if kind in SCALARS:
            return self.scalars(SCALARS[kind], 1)[0]
        if kind == STRING:
            return self.text()
        if kind != ARRAY or depth > 3:
            raise ValueError(f"a value has the unknown type {kind}")
        (inner,), (count,) = self.scalars("I", 1), self.scalars("Q", 1)
        if count > LONGEST_ARRAY:
            raise ValueError(f"a list has {count:,} values")
        if inner in SCALARS:
            return list(self.scalars(SCALARS[inner], count))
        if inner == STRING:
            return self.texts(count)
        return [self.value(inner, depth + 1) for _ in range(count)]


def open_gguf(path: Path) -> GgufData:
    """Return metadata and tensors of a GGUF file (version 2 or 3, little-endian); raises ToolkitError if damaged.

    The last two files are remembered while they stay as they are: a vocabulary takes a third of a second to read.
    """
    try:
        there = path.stat()
        found = _opened(path, (there.st_dev, there.st_ino, there.st_size, there.st_mtime_ns))
        return GgufData(dict(found.metadata), dict(found.tensors))
    except FileNotFoundError:
        raise ToolkitError(f"no GGUF file `{path}`") from None
    except (ValueError, struct.error) as exc:
        raise ToolkitError(f"`{path}` cannot be read as GGUF: {exc}", hint="copy or write it again") from None


@functools.lru_cache(maxsize=2)
def _opened(path: Path, identity: tuple[int, int, int, int]) -> GgufData:
    """Parse a file's header; more of the file is read where the header is longer than what was read first."""
    size = identity[2]
    with path.open("rb") as file:
        start = file.read(HEADERS[0])
        for longer in HEADERS[1:]:
            try:
                return _parse(_Cursor(start), size)
            except (ValueError, struct.error):
                if len(start) == size:
                    raise
            start += file.read(longer - len(start))
        return _parse(_Cursor(start), size)


def quantization_of(path: Path) -> str:
    """Return the quantization that a GGUF file names, empty if it names none or cannot be read."""
    with contextlib.suppress(ToolkitError):
        number = open_gguf(path).metadata.get("general.file_type")
        return next((name for name, (_, known) in BASE.items() if known == number), "")
    return ""


def read_values(path: Path, tensor: GgufTensor) -> npt.NDArray[np.float32]:
    """Return a tensor's values in float32; raises ToolkitError for a type that cannot be read."""
    raw = np.fromfile(path, np.uint8, tensor.size, offset=tensor.offset)
    try:
        values = dequantize(raw.reshape(*tensor.shape[:-1], -1), tensor.kind)
    except (NotImplementedError, ValueError) as exc:
        raise ToolkitError(f"`{path}` has weights of type {tensor.kind.name}, which cannot be read: {exc}") from None
    return np.ascontiguousarray(values, np.float32).reshape(tensor.shape)


def _parse(cursor: _Cursor, size: int) -> GgufData:
    if cursor.take(4) != b"GGUF":
        raise ValueError("it does not start with GGUF")
    (version,) = cursor.scalars("I", 1)
    if version not in (2, 3):
        raise ValueError(f"its version is {version}")
    count, keys = cursor.scalars("Q", 2)
    metadata = {}
    for _ in range(keys):
        key = cursor.text()
        try:
            metadata[key] = cursor.value(cursor.scalars("I", 1)[0])
        except ValueError as exc:
            raise ValueError(f"{exc} (key `{visible(key)}`)") from None
    stated = []
    for _ in range(count):
        name, (dimensions,) = cursor.text(), cursor.scalars("I", 1)
        if dimensions > 4:
            raise ValueError(f"tensor `{visible(name)}` has {dimensions} dimensions")
        shape = tuple(reversed(cursor.scalars("Q", dimensions)))
        stated.append((name, shape, *cursor.scalars("I", 1), *cursor.scalars("Q", 1)))
    alignment = metadata.get("general.alignment", 32)
    if type(alignment) is not int or alignment < 1:
        raise ValueError("its alignment is not a number")
    start = -(-cursor.place // alignment) * alignment
    tensors = {name: _tensor(name, shape, kind, start + offset, size) for name, shape, kind, offset in stated}
    if len(tensors) != len(stated):
        raise ValueError("a tensor's name occurs twice")
    return GgufData(metadata, tensors)


def _tensor(name: str, shape: tuple[int, ...], number: int, offset: int, file_size: int) -> GgufTensor:
    kind = GGMLQuantizationType(number)
    weights, block = GGML_QUANT_SIZES[kind]
    if shape and shape[-1] % weights:
        raise ValueError(
            f"tensor `{visible(name)}` has rows of {shape[-1]} values, but {kind.name} has blocks of {weights}"
        )
    size = prod(shape) // weights * block
    if offset + size > file_size:
        raise ValueError(f"tensor `{visible(name)}` ends at byte {offset + size}, but the file ends at {file_size}")
    return GgufTensor(shape, kind, offset, size)
