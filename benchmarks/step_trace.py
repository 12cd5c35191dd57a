"""What a Chrome trace of torch.profiler says of training: kernels, the part of a step each belongs to, and gaps."""

import collections
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

THIN = 64  # a product one of whose sizes is at most this is LoRA's: rank 16, and 48 for query, key and value at once
PRODUCT = "product"  # divided by shapes
# The first pattern that is found in a kernel's name, in any case, says which part it is.
PARTS = (
    ("attention", r"flash|fmha|attention"),
    ("SwiGLU with quantizing to FP8", r"swiglu_(backward_)?kernel"),
    ("quantizing to FP8", r"^rows_kernel|act_quant"),
    ("norms, activations, RoPE", r"rms_|layernorm|rope|_fg_kernel|_dwf_dw_dfg|silu"),
    ("dequantizing", r"dequant"),
    ("optimizer, clipping", r"multi_tensor|adam|koptimizer|lpnorm"),
    (PRODUCT, r"gemm|gemv|nvjet|cutlass|cublas|xmma|wgmma|splitk"),
    ("loss, head", r"softmax|nll|cross_entropy|triton_(red|per|poi)_"),  # compiled by torch: the loss
    ("copies, casts, sums", r"memcpy|memset|elementwise|copy|catarray|reduce_|index|embedding|gather|scatter|fill"),
)
OTHER = "unclassified"


@dataclass(frozen=True)
class Kernel:
    """A kernel, copy or fill on the GPU; times in microseconds, `sizes` those of its operation's inputs."""

    name: str
    start: float
    length: float
    is_copy: bool
    sizes: tuple[int, ...]


def part_of(kernel: Kernel, vocabulary: int) -> str:
    """Return the part of a step that a kernel belongs to."""
    part = next((part for part, pattern in PARTS if re.search(pattern, kernel.name, re.IGNORECASE)), OTHER)
    if part != PRODUCT:
        return part
    if not kernel.sizes:
        return "products of unknown sizes"
    if max(kernel.sizes) >= vocabulary:
        return "loss, head"
    return "LoRA's thin products" if min(kernel.sizes) <= THIN else "frozen products"


def kernels_of(events: list[dict[str, Any]]) -> list[Kernel]:
    """Return what ran on the GPU, in order of time, from the events of a Chrome trace."""
    operations: dict[Any, tuple[int, ...]] = {}
    for event in events:
        if event.get("cat") == "cpu_op" and "Input Dims" in event["args"]:
            found = tuple(size for dims in event["args"]["Input Dims"] for size in _numbers(dims) if size > 1)
            operations[event["args"].get("External id")] = found
    kernels = [
        Kernel(
            event["name"], event["ts"], event["dur"], event["cat"] != "kernel",
            operations.get(event["args"].get("External id"), ()),
        )
        for event in events if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]  # fmt: skip
    return sorted(kernels, key=lambda kernel: kernel.start)


def _numbers(dims: Any) -> list[int]:
    """Flatten the sizes of an input, which may be a list of tensors."""
    return [one for part in dims for one in _numbers(part)] if isinstance(dims, list) else [int(dims)]


def gaps(kernels: list[Kernel]) -> list[tuple[float, str]]:
    """Return the times in which nothing ran, each with the name of the kernel that ended it."""
    found, end = [], kernels[0].start
    for kernel in kernels:
        if kernel.start > end:
            found.append((kernel.start - end, kernel.name))
        end = max(end, kernel.start + kernel.length)
    return found


def busy(kernels: list[Kernel]) -> float:
    """Return the time in which something ran; kernels may overlap."""
    first, last = kernels[0].start, max(kernel.start + kernel.length for kernel in kernels)
    return last - first - sum(length for length, _ in gaps(kernels))


def summed(pairs: Iterable[tuple[str, float]]) -> list[tuple[str, float, int]]:
    """Add up by name; return names, sums and counts, the largest sum first."""
    sums: dict[str, float] = collections.defaultdict(float)
    counts: collections.Counter[str] = collections.Counter()
    for name, value in pairs:
        sums[name] += value
        counts[name] += 1
    return sorted(((name, value, counts[name]) for name, value in sums.items()), key=lambda one: -one[1])
