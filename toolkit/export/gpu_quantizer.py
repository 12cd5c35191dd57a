"""The CUDA GPU helps the CPU's kernels: it takes over a type once tests show that it writes ggml's bytes.

The CPU starts at once. Meanwhile a thread compiles and tests what this export needs. The bytes are the same, so a file
may start on the CPU and continue on the GPU. A GPU that fails is not used again, and nothing is lost.
"""

import contextvars
import threading
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import prod

from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.core import console
from toolkit.export.importance import Importance
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.formats.checkpoint import BLOCK, SLAB, Floats
from toolkit.kernels import gpu

SECONDS = 4.0  # of quantizing on the CPU; with less, the GPU would be ready too late
SPEEDS = (150e6, 12e6)  # weights per second and core: of the compiled kernels, of libggml
LEAST = 1 << 20  # weights of a block; a core does fewer in less time than the copies to the GPU and back take
STEPS = SLAB // BLOCK  # blocks that go to the GPU at a time: each round trip costs the same, however short

Need = tuple[Type, bool]  # type, with an importance matrix


@dataclass
class GpuQuantizer:
    """What an export knows of the GPU: which types it may do there, and what has written each type so far."""

    trusted: set[Need] = field(default_factory=set)
    name: str = ""
    on_gpu: set[Type] = field(default_factory=set)
    on_cpu: set[Type] = field(default_factory=set)
    stopped: threading.Event = field(default_factory=threading.Event)

    def takes(self, kind: Type, rows: kernels.Rows, importance: Floats | None) -> bool:
        """Tell whether the GPU does some rows now."""
        ready = (kind, importance is not None) in self.trusted and not self.stopped.is_set()
        return ready and rows.size >= LEAST

    def steps(self, kinds: Mapping[Type, Floats | None]) -> int:
        """Return how many blocks of rows are best done at once in these types."""
        trusted = any((kind, importance is not None) in self.trusted for kind, importance in kinds.items())
        return STEPS if trusted and not self.stopped.is_set() else 1

    def quantize(self, kind: Type, rows: kernels.Rows, out: kernels.Bytes, importance: Floats | None) -> bool:
        """Fill `out` if the GPU does these rows; False if the CPU must do them, as always once the GPU has failed."""
        if not self.takes(kind, rows, importance):
            self.on_cpu.add(kind)
            return False
        try:
            gpu.quantize_into(kind, rows, out, importance)
        except Exception as exc:  # no memory, a reset, a driver: in any case the CPU can do it
            self.stopped.set()
            reason = gpu.first_line(exc)
            if gpu.give_up(reason):
                console.warn(
                    f"the CUDA GPU failed while it quantized ({reason}): the CPU continues and writes the same bytes"
                )
            self.on_cpu.add(kind)
            return False
        self.on_gpu.add(kind)
        return True

    def writers(self, kind: Type) -> str:
        """Return for the manifest what wrote a type: the CPU's routine, the GPU, or both."""
        names = [kernels.routine(int(kind)).name] if kind in self.on_cpu or kind not in self.on_gpu else []
        return ", ".join([*names, *([f"CUDA ({self.name})"] if kind in self.on_gpu else [])])


@contextmanager
def beside(tensors: Sequence[PlannedTensor], imatrix: Importance, cores: int) -> Iterator[GpuQuantizer]:
    """Yield the GPU as an export of these tensors uses it: not at first, later for the types that it has passed.

    A thread runs the tests if there is a GPU and the export is large enough to gain from it. It ends with the export,
    or after the compilation in progress.
    """
    quantizer_gpu = GpuQuantizer()
    needs = needed(tensors, imatrix)
    speed = cores * SPEEDS[kernels.opened() is None]
    if sum(needs.values()) >= SECONDS * speed:
        in_background(quantizer_gpu, needs)
    try:
        yield quantizer_gpu
    finally:
        quantizer_gpu.stopped.set()


def in_background(quantizer_gpu: GpuQuantizer, needs: Mapping[Need, int]) -> None:
    """Start the tests in a separate thread."""
    here = contextvars.copy_context()  # what the thread says goes where this one's texts go
    threading.Thread(target=here.run, args=(prove_types, quantizer_gpu, needs), name="gpu").start()


def needed(tensors: Sequence[PlannedTensor], imatrix: Importance) -> Mapping[Need, int]:
    """Return what an export needs from a GPU, and the number of weights for each, largest first."""
    found: Counter[Need] = Counter()
    for tensor in tensors:
        for kind in {*tensor.types.values()} & {*gpu.KINDS}:
            found[kind, tensor.name in (imatrix or {})] += prod(tensor.shape)
    return dict(found.most_common())


def prove_types(quantizer_gpu: GpuQuantizer, needs: Mapping[Need, int]) -> None:
    """Test the GPU on one type after the other; if anything fails, the CPU does the export."""
    try:
        if gpu.available():
            return
        quantizer_gpu.name, count = gpu.gpu_name(), gpu.gpu_count()
    except Exception as exc:  # a torch or driver that does not start
        console.warn(f"the CUDA GPU is not used: {gpu.first_line(exc)}")
        return
    if count > 1:
        console.info(f"one of the {count} GPUs quantizes: it is faster than the files are read and written")
    for need in needs:
        if quantizer_gpu.stopped.is_set():
            return
        reason = gpu.self_test(*need, False) or gpu.self_test(*need, True)
        if reason is None:
            quantizer_gpu.trusted.add(need)
        elif not quantizer_gpu.stopped.is_set():
            console.warn(f"the CUDA GPU is not used for {need[0].name}: {reason}; the CPU writes the same bytes")
