"""A GGUF file as bytes: each key's value and each tensor as they lie in the file, to compare two files exactly.

The `gguf` package's reader takes 10 to 20 seconds for a vocabulary of 128,256 tokens, and the toolkit's own is tested.
Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md
"""

import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path

from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a value of each type
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class Tensor:
    """One tensor: its shape as the file says it (rows are as long as the first number), its type and its bytes."""

    shape: tuple[int, ...]
    kind: GGMLQuantizationType
    data: bytes


@dataclass(frozen=True)
class Contents:
    """What is in a file; a value's bytes begin with its type. `start` is where the tensors begin."""

    metadata: dict[str, bytes]
    tensors: dict[str, Tensor]
    start: int


def read(path: Path) -> Contents:
    """Return all that is in a file that some program has just written whole."""
    data = path.read_bytes()
    magic, version, count, keys = struct.unpack_from("<4sIQQ", data)
    assert (magic, version) == (b"GGUF", 3), path
    place, metadata = 24, {}
    for _ in range(keys):
        key, place = _text(data, place)
        end = _end(data, place)
        metadata[key], place = data[place:end], end
    stated = []
    for _ in range(count):
        name, place = _text(data, place)
        (dimensions,) = struct.unpack_from("<I", data, place)
        *sizes, kind, offset = struct.unpack_from(f"<{dimensions}QIQ", data, place + 4)
        stated.append((name, tuple(sizes), GGMLQuantizationType(kind), offset))
        place += 4 + 8 * dimensions + 12
    start = -(-place // 32) * 32
    tensors = {}
    for name, shape, kind, offset in stated:
        weights, size = GGML_QUANT_SIZES[kind]
        at = start + offset
        tensors[name] = Tensor(shape, kind, data[at : at + prod(shape) // weights * size])
    assert len(tensors) == count and len(metadata) == keys, path
    return Contents(metadata, tensors, start)


def unlike(ours: Contents, theirs: Contents) -> dict[str, str]:
    """Return what differs between two files: tensors and keys by name, and how."""
    wrong = dict.fromkeys(ours.tensors.keys() ^ theirs.tensors.keys(), "a tensor of one file alone")
    for name in ours.tensors.keys() & theirs.tensors.keys():
        one, other = ours.tensors[name], theirs.tensors[name]
        if (one.kind, one.shape) != (other.kind, other.shape):
            wrong[name] = f"{one.kind.name} {one.shape}, not {other.kind.name} {other.shape}"
        elif one.data != other.data:
            wrong[name] = "other bytes"
    for key in ours.metadata.keys() | theirs.metadata.keys():
        one_value, other_value = ours.metadata.get(key), theirs.metadata.get(key)
        if one_value != other_value:
            wrong[key] = f"{one_value!r:.60}, not {other_value!r:.60}"
    return wrong


def _text(data: bytes, place: int) -> tuple[str, int]:
    (length,) = struct.unpack_from("<Q", data, place)
    end = place + 8 + length
    return data[place + 8 : end].decode(), end


def _end(data: bytes, place: int) -> int:
    """Return where a value ends whose type is at `place`."""
    (kind,) = struct.unpack_from("<I", data, place)
    count, place = 1, place + 4
    if kind == ARRAY:
        kind, count = struct.unpack_from("<IQ", data, place)
        place += 12
    if kind in SIZES:
        return place + count * SIZES[kind]
    assert kind == STRING, kind
    for _ in range(count):
        place += 8 + int.from_bytes(data[place : place + 8], "little")
    return place
