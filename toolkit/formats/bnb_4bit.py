"""bitsandbytes' 4-bit weights (nf4, fp4, with or without double quantization) back to floats, by numpy on the CPU.

Two weights share a byte, the first one in its upper half; each is an index into 16 fixed values, times the scale of
its block. With double quantization the scales themselves are bytes, indices into a stored map, times the scale of
their own block, plus an offset. The product is rounded to the dtype that the model had before. Facts: bitsandbytes
0.50's QuantState and its CPU kernels; NF4's values come from Dettmers et al. 2023, appendix E
(https://arxiv.org/abs/2305.14314).
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json

Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

STATE = ".quant_state.bitsandbytes__"
PARTS = (
    "absmax",
    "quant_map",
    "nested_absmax",
    "nested_quant_map",
)  # WEIGHT.absmax and so on; the last two may be absent
DTYPES = ("float32", "bfloat16", "float16")
BLOCK_SIZES = (32, 64, 128, 256, 512, 1024, 2048, 4096)
_POSITIVE_FP4 = np.array([0, 0.0625, 8, 12, 4, 6, 2, 3], np.float32) / np.float32(12)
CODES: dict[str, Floats] = {
    "nf4": np.array(
        [
            -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
            -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
            0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
        ],
        np.float32,
    ),
    "fp4": np.concatenate([_POSITIVE_FP4, -_POSITIVE_FP4]) + np.float32(0),
}  # fmt: skip

# Both weights of each of the 256 bytes, shape (256, 2): one look-up per byte.
_PAIRS = {kind: np.stack([code.repeat(16), np.tile(code, 16)], axis=1) for kind, code in CODES.items()}


@dataclass(frozen=True)
class State:
    """How one weight was quantized: its kind, block size in weights, dtype to round to, and shape (out, in).

    `nested_blocksize` is 0 without double quantization.
    """

    kind: str
    blocksize: int
    dtype: str
    shape: tuple[int, ...]
    nested_blocksize: int
    nested_offset: float

    @property
    def count(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)

    @property
    def blocks(self) -> int:
        """The number of scales."""
        return -(-self.count // self.blocksize)


def parse_state(text: bytes, kind: str, name: str) -> State:
    """Read the JSON that bitsandbytes keeps in `NAME.quant_state.bitsandbytes__KIND`.

    Raises ToolkitError for anything that bitsandbytes could not have written.
    """
    try:
        values = parse_json(text)
        shape = tuple(values["shape"])
        nested = values.get("nested_blocksize", 0)
        offset = float(values.get("nested_offset", 0.0))
        sound = (
            values["quant_type"] == kind
            and kind in CODES
            and values["blocksize"] in BLOCK_SIZES
            and values["dtype"] in DTYPES
            and len(shape) > 0
            and all(type(size) is int and 0 < size < 2**40 for size in shape)
            and type(nested) is int
            and 0 <= nested < 2**40
            and math.isfinite(offset)
        )
    except (ValueError, TypeError, KeyError, AttributeError):
        sound = False
    if not sound:
        raise ToolkitError(
            f"the 4-bit state of `{name}` is not one that bitsandbytes writes: {text[:200]!r}",
            hint="copy or download the base again",
        )
    return State(kind, values["blocksize"], values["dtype"], shape, nested, offset)


def check_parts(state: State, name: str, packed: int, scales: tuple[str, int], nested: tuple[int, int] | None) -> None:
    """Raise ToolkitError unless the sizes fit: `packed` bytes, dtype and number of scales, nested scales and map."""
    problem = ""
    kind, count = scales
    if packed != -(-state.count // 2):
        problem = f"{packed} bytes for {state.count} weights"
    elif count != state.blocks:
        problem = f"{count} scales for {state.blocks} blocks"
    elif (nested is not None) != (state.nested_blocksize > 0) or (kind == "U8") != (nested is not None):
        problem = f"scales in {kind}, {'with' if nested else 'without'} double quantization"
    elif nested and nested != (-(-state.blocks // state.nested_blocksize), 256):
        problem = f"{nested[0]} nested scales and a map of {nested[1]} for {state.blocks} scales"
    if problem:
        raise ToolkitError(f"the 4-bit weight `{name}` is damaged: {problem}", hint="copy or download the base again")


def block_scales(state: State, scales: npt.NDArray[Any], nested: tuple[Floats, Floats] | None) -> Floats:
    """Return the scale of each block in float32; `nested` is (scales of the scales, map of 256 values)."""
    if nested is None:
        return np.ascontiguousarray(scales, np.float32)
    absmax, code = nested
    plain: Floats = np.repeat(absmax.astype(np.float32), state.nested_blocksize)[: state.blocks]
    plain *= code.astype(np.float32)[scales]
    plain += np.float32(state.nested_offset)
    return plain


def dequantize(state: State, packed: Bytes, scales: Floats, start: int, count: int) -> Floats:
    """Return `count` weights from number `start` on, as float32 values rounded to the state's dtype.

    `packed` holds just their bytes, `scales` those of the whole tensor; `start` is at the beginning of a block.
    """
    values: Floats = _PAIRS[state.kind].take(packed, axis=0).reshape(-1)[:count]
    first, whole = start // state.blocksize, count // state.blocksize
    split = whole * state.blocksize
    values[:split].reshape(whole, state.blocksize)[:] *= scales[first : first + whole, None]
    if split < count:
        values[split:] *= scales[first + whole]
    return rounded(values, state.dtype)


def rounded(values: Floats, dtype: str) -> Floats:
    """Round float32 values to the nearest that a dtype can hold, ties to even, and return them as float32."""
    if dtype == "float16":
        with np.errstate(over="ignore"):  # infinity is found and named where the weight is read
            return values.astype(np.float16).astype(np.float32)
    if dtype == "bfloat16":
        bits = values.view(np.uint32)
        bits += np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
        bits &= np.uint32(0xFFFF0000)
    return values


def refused(config: Mapping[str, Any]) -> str:
    """Name the quantization in a config.json that cannot be undone here; empty for none and bitsandbytes' 4 bits."""
    stated = config.get("quantization_config")
    if not stated:
        return ""
    method = stated.get("quant_method") if isinstance(stated, dict) else stated
    if method == "bitsandbytes" and isinstance(stated, dict):
        return "" if stated.get("load_in_4bit") or stated.get("_load_in_4bit") else "bitsandbytes in 8 bits"
    return str(method or "an unnamed method")[:60]


def plain_tensors(folder: Path) -> Iterator[tuple[str, Any]]:
    """Yield each weight of a folder as a torch tensor, 4-bit ones dequantized; parts may be in another shard."""
    import torch
    from safetensors import safe_open

    with ExitStack() as stack:
        files = [stack.enter_context(safe_open(path, framework="pt")) for path in sorted(folder.glob("*.safetensors"))]
        places = {name: file for file in files for name in file.keys()}  # noqa: SIM118
        kinds = dict(name.split(STATE) for name in places if STATE in name)
        parts = {f"{weight}.{part}" for weight in kinds for part in PARTS}
        for name, file in places.items():
            if STATE in name or name in parts:
                continue
            tensor = file.get_tensor(name)
            if name in kinds:
                keys = {part: f"{name}.{part}" for part in PARTS}
                found = {part: places[key].get_tensor(key) for part, key in keys.items() if key in places}
                key = f"{name}{STATE}{kinds[name]}"
                state = parse_state(bytes(places[key].get_tensor(key).numpy()), kinds[name], name)
                values, dtype = _plain(name, state, tensor, found)
                tensor = torch.from_numpy(values).to(getattr(torch, dtype))
            yield name, tensor


def _plain(name: str, state: State, tensor: Any, parts: Mapping[str, Any]) -> tuple[Floats, str]:
    import torch

    packed: Bytes = tensor.contiguous().view(torch.uint8).reshape(-1).numpy()
    if "absmax" not in parts:
        raise ToolkitError(f"the 4-bit weight `{name}` lacks its absmax", hint="copy or download the base again")
    absmax = parts["absmax"].reshape(-1)
    nested = None
    if "nested_absmax" in parts and "nested_quant_map" in parts:
        nested = (parts["nested_absmax"].float().numpy(), parts["nested_quant_map"].float().numpy())
    kind = "U8" if absmax.dtype == torch.uint8 else "F32"
    check_parts(state, name, packed.size, (kind, absmax.numel()), nested and (nested[0].size, nested[1].size))
    scales = block_scales(state, (absmax if nested else absmax.float()).numpy(), nested)
    return dequantize(state, packed, scales, 0, state.count).reshape(state.shape), state.dtype
