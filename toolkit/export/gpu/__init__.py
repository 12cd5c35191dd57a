"""Quantize on a CUDA card, byte for byte as ggml does it on the CPU.

What a card computes is used only once it has passed a test of its own: hard blocks, compared with ggml's bytes. Blocks
beyond the range in which the kernels are exact (the edges of float16 and float32, hardly found in weights) go back to
ggml one by one.
"""

import importlib.util
import threading
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.export.gpu import hard

Floats = npt.NDArray[np.float32]
Chunk = npt.NDArray[np.uint8]

PIECE = 1 << 26  # weights on the card at a time: some 400 MB with what the search keeps
# Types whose importance is scaled by the mean square of a whole row: ggml needs the row to do one of its blocks again.
BY_ROW = (Type.Q4_0, Type.Q4_1, Type.Q5_0, Type.Q5_1)

_testing = threading.Lock()


def available() -> str | None:
    """Return why no card can be used here; None if there is one to be tested."""
    if importlib.util.find_spec("torch") is None:
        return "PyTorch is not installed"
    import torch

    if not torch.cuda.is_available() or torch.version.cuda is None:
        return "there is no CUDA card"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    return None


def trusted(kind: Type, weighted: bool, bf16: bool) -> str | None:
    """Return why the card's kernel for a type must not be used; None once it gave ggml's bytes for the hard blocks.

    `weighted` is with an importance matrix, `bf16` from bfloat16. The test runs once a process: it compiles the kernel.
    """
    reason = available()
    if reason:
        return reason
    with _testing:
        return _tested(kind, weighted, bf16, "cuda")


@cache
def _tested(kind: Type, weighted: bool, bf16: bool, device: str) -> str | None:
    try:
        from toolkit.export.gpu import launch

        if kind not in launch.KINDS:
            return f"there is no kernel for {kind.name}"
        rows = np.concatenate([hard.ordinary_rows(64), hard.hard_rows(), hard.hostile_rows()])
        if bf16:
            rows = hard.on_bfloat16_grid(rows)
        importance = hard.importance_row() if weighted else None
        values = (rows.view(np.uint32) >> 16).astype(np.uint16) if bf16 else rows
        found = quantize(kind, values, importance, device)
        expected = reference(kind, rows, importance)
    except Exception as exc:  # a compiler or driver that fails in whatever way: the CPU does it
        return f"its kernel for {kind.name} failed: {str(exc).strip().splitlines()[0] if str(exc) else repr(exc)}"
    different = int((found != expected).reshape(-1, GGML_QUANT_SIZES[kind][1]).any(axis=1).sum())
    return f"its {kind.name} differs from ggml's in {different} test blocks" if different else None


def quantize(kind: Type, rows: Any, importance: Floats | None = None, device: str = "cuda") -> Chunk:
    """Return some rows in a ggml type: one array of bytes.

    `rows` is (rows, columns), C-contiguous: NumPy's float32 or uint16 (the bits of bfloat16), or a tensor of float32 or
    bfloat16; `importance` (columns,) in float32. Ask `trusted` before.
    """
    import torch

    from toolkit.export.gpu import launch

    if isinstance(rows, np.ndarray):
        tensor = torch.from_numpy(rows.view(np.int16)).view(torch.bfloat16) if rows.dtype == np.uint16 else rows
        rows = tensor if isinstance(tensor, torch.Tensor) else torch.from_numpy(tensor)
    weights = None if importance is None else torch.from_numpy(np.array(importance, np.float32)).to(device)
    size, stored = GGML_QUANT_SIZES[kind]
    out: Chunk = np.empty((rows.numel() // size, stored), np.uint8)
    step = max(1, PIECE // rows.shape[-1])
    per_row = rows.shape[-1] // size
    for start in range(0, len(rows), step):
        piece = rows[start : start + step].to(device)
        if piece.data_ptr() % 8:  # read as words of 64 bits
            piece = piece.clone()
        written, flags = launch.quantize_rows(kind, piece, weights)
        part = out[start * per_row : start * per_row + len(written)]
        torch.from_numpy(part).copy_(written)
        flagged = torch.nonzero(flags).reshape(-1).cpu().numpy()
        if len(flagged):
            _again(kind, piece, importance, flagged, part)
    return out.reshape(-1)


def _again(kind: Type, rows: Any, importance: Floats | None, flagged: npt.NDArray[np.int64], out: Chunk) -> None:
    """Let ggml quantize the flagged blocks, or the rows they lie in."""
    size = GGML_QUANT_SIZES[kind][0]
    columns = rows.shape[-1]
    if importance is not None and kind in BY_ROW:
        for row in np.unique(flagged // (columns // size)):
            part = reference(kind, rows[int(row)][None].float().cpu().numpy(), importance)
            out[row * (columns // size) : (row + 1) * (columns // size)] = part.reshape(-1, out.shape[1])
        return
    blocks = rows.reshape(-1, size)[flagged.tolist()].float().cpu().numpy()
    for index, block in zip(flagged, blocks, strict=True):
        first = int(index) * size % columns
        weights = None if importance is None else importance[first : first + size]
        out[index] = reference(kind, block[None], weights)


def reference(kind: Type, rows: Floats, importance: Floats | None) -> Chunk:
    """Return what ggml itself writes for some rows of float32."""
    size, stored = GGML_QUANT_SIZES[kind]
    out: Chunk = np.empty(rows.size // size * stored, np.uint8)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    kernels.quantize_with_ggml(int(kind), np.ascontiguousarray(rows, np.float32), out, weights)
    return out
