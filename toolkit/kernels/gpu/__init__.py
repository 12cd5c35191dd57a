"""Quantize on a CUDA GPU, byte for byte as ggml does it on the CPU.

What a GPU computes is used only once it has passed a test of its own: hard blocks, compared with ggml's bytes. Blocks
beyond the range in which the kernels are exact (the edges of float16 and float32, rare in weights) go back to ggml one
by one. Where there is no GPU, neither torch nor Triton is imported.
"""

import importlib.util
import threading
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.core import hardware
from toolkit.kernels.gpu import lanes, test_vectors

Floats = npt.NDArray[np.float32]
Rows = kernels.Rows
Chunk = npt.NDArray[np.uint8]

KINDS = (Type.Q4_K, Type.Q5_K, Type.Q6_K, Type.Q8_0)
NAMES = tuple(kind.name for kind in KINDS)
# Types whose importance is scaled by the mean square of a whole row: ggml needs the row to do one of its blocks again.
BY_ROW = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)

_testing = threading.Lock()
_given_up: list[str] = []


def available() -> str | None:
    """Return why no GPU can be used here; None if there is one to test.

    torch, whose import takes seconds, is only asked if the driver's device file exists.
    """
    if _given_up:
        return _given_up[0]
    if not hardware.driver_offers_gpu():
        return "there is no CUDA GPU"
    for module, name in (("torch", "PyTorch"), ("triton", "Triton")):
        if importlib.util.find_spec(module) is None:
            return f"{name} is not installed"
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "there is no CUDA GPU"
    return None


def gpu_name() -> str:
    """Return the GPU's name from torch; call `available` first."""
    import torch

    name: str = torch.cuda.get_device_name()
    return name


def gpu_count() -> int:
    """Return how many GPUs this process sees; call `available` first."""
    import torch

    count: int = torch.cuda.device_count()
    return count


def give_up(reason: str) -> bool:
    """Stop using the GPU in this process; returns whether it was still in use."""
    with _testing:
        _given_up.append(reason)
        return len(_given_up) == 1


def self_test(kind: Type, weighted: bool, bf16: bool) -> str | None:
    """Return why the GPU's kernel for a type must not be used; None if it gives ggml's bytes for the hard blocks.

    `weighted` is with an importance matrix, `bf16` from bfloat16. The test runs once per process: it compiles the
    kernel, 4 to 17 seconds the first time on a machine.
    """
    reason = available()
    if reason:
        return reason
    with _testing:
        return _tested(kind, weighted, bf16, "cuda")


def gpu_state(kinds: Sequence[str]) -> tuple[bool, str] | None:
    """Say for `doctor` which of these types the GPU quantizes, and whether it works as it should; None without a GPU.

    Compiles kernels that were never compiled on this machine.
    """
    if not kinds or available():
        return None
    found = {kind: self_test(Type[kind], False, False) for kind in kinds}
    reasons = [reason for reason in found.values() if reason]
    if reasons:
        return False, f"{gpu_name()} is not used for {', '.join(k for k, r in found.items() if r)}: {reasons[0]}"
    return True, f"large models: {gpu_name()} quantizes {', '.join(found)}, to the same bytes"


@cache
def _tested(kind: Type, weighted: bool, bf16: bool, device: str) -> str | None:
    try:
        if kind not in KINDS:
            return f"there is no kernel for {kind.name}"
        rows = np.concatenate([test_vectors.ordinary_rows(64), test_vectors.hard_rows(), test_vectors.hostile_rows()])
        if bf16:
            rows = test_vectors.on_bfloat16_grid(rows)
        importance = test_vectors.importance_row() if weighted else None
        values = kernels.to_bf16(rows) if bf16 else rows
        found = quantize(kind, values, importance, device)
        expected = reference(kind, rows, importance)
    except Exception as exc:  # a compiler or driver may fail in any way: the CPU does it
        return f"its kernel for {kind.name} failed: {first_line(exc)}"
    different = int((found != expected).reshape(-1, GGML_QUANT_SIZES[kind][1]).any(axis=1).sum())
    return f"its {kind.name} differs from ggml's in {different} test blocks" if different else None


def first_line(exc: BaseException) -> str:
    """Return what a compiler or driver said, in one line."""
    return str(exc).strip().splitlines()[0] if str(exc).strip() else repr(exc)


def quantize(kind: Type, rows: Any, importance: Floats | None = None, device: str = "cuda") -> Chunk:
    """Return some rows in a ggml type: one array of bytes.

    `rows` is (rows, columns), C-contiguous: NumPy's float32 or uint16 (the bits of bfloat16), or a tensor of float32 or
    bfloat16; `importance` (columns,) in float32. Call `self_test` first.
    """
    size, stored = GGML_QUANT_SIZES[kind]
    count = rows.size if isinstance(rows, np.ndarray) else rows.numel()
    out: Chunk = np.empty(count // size * stored, np.uint8)
    quantize_into(kind, rows, out, importance, device)
    return out


def quantize_into(kind: Type, rows: Any, out: Chunk, importance: Floats | None = None, device: str = "cuda") -> None:
    """Fill `out`, one row of bytes, as `quantize` says.

    Any number of threads may call this at once: the GPU computes for one while others copy.
    """
    import torch

    from toolkit.kernels.gpu import launch

    size, stored = GGML_QUANT_SIZES[kind]
    columns = rows.shape[-1]
    step, per_row = max(1, lanes.PIECE // columns), columns // size
    blocks = out.reshape(-1, stored)
    with lanes.borrowed(device) as lane:
        weights = None if importance is None else torch.from_numpy(np.array(importance, np.float32)).to(device)
        for start in range(0, len(rows), step):
            piece = rows[start : start + step]
            written, flags = launch.quantize_rows(kind, lane.to_device(piece), weights)
            part = blocks[start * per_row : start * per_row + len(written)]
            marks = lane.from_device(written, flags, part)
            flagged = np.flatnonzero(marks)
            if len(flagged):
                _again(kind, piece, importance, flagged, part)


def _again(kind: Type, rows: Any, importance: Floats | None, flagged: npt.NDArray[np.int64], out: Chunk) -> None:
    """Let ggml quantize the flagged blocks, or the rows they lie in."""
    size = GGML_QUANT_SIZES[kind][0]
    columns = rows.shape[-1]
    if importance is not None and kind in BY_ROW:
        for row in np.unique(flagged // (columns // size)):
            part = reference(kind, _floats(rows[int(row)][None]), importance)
            out[row * (columns // size) : (row + 1) * (columns // size)] = part.reshape(-1, out.shape[1])
        return
    blocks = _floats(rows.reshape(-1, size)[flagged.tolist()])
    for index, block in zip(flagged, blocks, strict=True):
        first = int(index) * size % columns
        weights = None if importance is None else importance[first : first + size]
        out[index] = reference(kind, block[None], weights)


def _floats(rows: Any) -> Floats:
    return kernels.widened(rows) if isinstance(rows, np.ndarray) else rows.float().cpu().numpy()


def reference(kind: Type, rows: Floats, importance: Floats | None) -> Chunk:
    """Return what ggml itself writes for some rows of float32."""
    size, stored = GGML_QUANT_SIZES[kind]
    out: Chunk = np.empty(rows.size // size * stored, np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    kernels.quantize_with_ggml(int(kind), np.ascontiguousarray(rows, np.float32), out, weights)
    return out
