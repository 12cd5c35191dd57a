"""The header of one safetensors file: what it holds and where, every field checked; and a new one.

Format: https://github.com/huggingface/safetensors#format.
"""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, TypeGuard

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json
from toolkit.formats import bnb_4bit
from toolkit.formats.names import visible

ITEM_SIZES = {
    "F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I16": 2, "I8": 1,
    "U64": 8, "U32": 4, "U16": 2, "U8": 1, "BOOL": 1, "F8_E4M3": 1, "F8_E5M2": 1,
}  # fmt: skip
LONGEST_HEADER = 100_000_000  # bytes; the limit of the safetensors library
AGAIN = "copy or download it again"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of a safetensors file: its dtype, shape, and bytes `offset` to `offset + size` of the file.

    A weight of bitsandbytes' 4 bits has the dtype NF4 or FP4, the shape it stands for, and its `scales`.
    """

    name: str
    path: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int
    scales: "Scales | None" = None


@dataclass(frozen=True)
class Scales:
    """What a 4-bit weight needs besides its own bytes; `nested` are the scales of the scales and their map."""

    state: bnb_4bit.State
    absmax: TensorInfo
    nested: tuple[TensorInfo, TensorInfo] | None


def read_header(path: Path, *, of: Path | None = None) -> dict[str, TensorInfo]:
    """List the tensors of one safetensors file, every field checked against the file's real size.

    With `of`, `path` holds the beginning alone of that file, whose size is not known here. Raises ToolkitError if the
    header is damaged or the file is shorter or longer than it says.
    """

    def damaged(reason: str) -> ToolkitError:
        return ToolkitError(f"`{path}` is damaged or truncated: {reason}", hint=AGAIN)

    actual = path.stat().st_size
    with path.open("rb") as file:
        prefix = file.read(8)
        if len(prefix) < 8:
            raise damaged(f"it has {actual} bytes")
        (length,) = struct.unpack("<Q", prefix)
        if length > min(LONGEST_HEADER, actual - 8):
            raise damaged(f"it states a header of {length} bytes, but the file has {actual}")
        text = file.read(length)
    try:
        entries = parse_json(text, pairs=_without_duplicates)
    except ValueError as exc:
        raise damaged(f"its header is not JSON ({exc})") from None
    if not isinstance(entries, dict):
        raise damaged("its header is not a JSON object")
    entries.pop("__metadata__", None)
    start = 8 + length
    tensors = {name: _entry(of or path, name, entry, start, damaged) for name, entry in entries.items()}
    end = start
    for tensor in sorted(tensors.values(), key=lambda tensor: (tensor.offset, tensor.size)):
        if tensor.offset != end:
            raise damaged(f"tensor `{visible(tensor.name)}` starts at byte {tensor.offset}, expected {end}")
        end += tensor.size
    if end != actual and of is None:
        raise damaged(f"its tensors end at byte {end}, but the file has {actual}")
    return tensors


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _entry(path: Path, name: str, entry: Any, start: int, damaged: Callable[[str], ToolkitError]) -> TensorInfo:
    values = entry if isinstance(entry, dict) else {}
    dtype, shape, span = values.get("dtype"), values.get("shape"), values.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise damaged(f"tensor `{visible(name)}` has the unknown dtype {dtype!r}")
    if not _counts(shape):
        raise damaged(f"tensor `{visible(name)}` has no valid shape")
    if not _counts(span) or len(span) != 2:
        raise damaged(f"tensor `{visible(name)}` has no valid offsets")
    size = span[1] - span[0]
    if size != prod(shape) * ITEM_SIZES[dtype]:
        raise damaged(f"tensor `{visible(name)}` has {size} bytes for shape {shape} in {dtype}")
    return TensorInfo(name, path, dtype, tuple(shape), start + span[0], size)


def _counts(values: Any) -> TypeGuard[list[int]]:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def new_header(shapes: Mapping[str, tuple[int, ...]], dtype: str) -> bytes:
    """Return the header of a file whose tensors, all of one dtype, follow it in the order of `shapes`."""
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, shape in shapes.items():
        end = place + prod(shape) * ITEM_SIZES[dtype]
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text
