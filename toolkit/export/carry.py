"""Tensors from the base to the files: read → merge → lay out → quantize → write, a block of rows at a time."""

from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

from gguf import GGMLQuantizationType as Type

from toolkit.core import console, hardware
from toolkit.export import quantize, tensors
from toolkit.export.gpu_quantizer import GpuQuantizer
from toolkit.export.planned_tensor import PlannedTensor, working_size
from toolkit.export.planning import ExportPlan
from toolkit.formats.checkpoint import Floats


class Output(Protocol):
    """What takes a file's tensors: each begins, comes in pieces, and is padded."""

    def begin(self, name: str) -> None:
        """Say which tensor comes next."""

    def write(self, data: Any) -> None:
        """Append bytes of it."""

    def pad(self) -> None:
        """End it."""


def carry(
    planned: ExportPlan,
    chosen: Sequence[PlannedTensor],
    imatrix: Mapping[str, Floats],
    files: Mapping[str, Output],
    pool: ThreadPoolExecutor,
    gpu: GpuQuantizer,
    progress: console.Progress,
) -> None:
    """Take the chosen tensors through all steps, in blocks of rows: read → merge → lay out → quantize → write.

    One thread of the pool does all steps of a block but the last, for all types at once. Each file hashes and writes in
    its own thread, in order. Merging comes before laying out: the adapter was trained in the checkpoint's order.
    """
    computed = planned.family.computed(planned.model)
    numbers = {tensor.name: number for number, tensor in enumerate(planned.tensors, 1)}
    waiting: deque[tuple[PlannedTensor, range, int, Future[dict[Type, quantize.Chunk]]]] = deque()

    def prepare(tensor: PlannedTensor) -> tensors.Source:
        return tensors.source(tensor, None if tensor.stored else computed[tensor.name], pool)

    def put(left: int) -> None:
        while len(waiting) > left:
            tensor, rows, total, block = waiting.popleft()
            chunks = block.result()
            for quantization, file in files.items():
                if rows.start == 0:
                    file.begin(tensor.name)
                file.write(chunks[tensor.types[quantization]])
                if rows.stop == total:
                    file.pad()
            size = tensor.stored.size if tensor.stored else 0
            note = f"tensor {numbers[tensor.name]} of {len(numbers)}  {tensor.name}"
            progress.advance(size * rows.stop // total - size * rows.start // total, note)

    for tensor, source in tensors.ahead(chosen, prepare, working_size):
        name, given = tensor.layout.source or tensor.name, imatrix.get(tensor.name)
        kinds = {kind: quantize.ready(kind, tensor.shape[-1], name, given) for kind in tensor.types.values()}
        step = source.step * gpu.steps(kinds)
        for start in range(0, source.rows, step):
            rows = range(start, min(start + step, source.rows))
            waiting.append((tensor, rows, source.rows, pool.submit(_block, source, rows, kinds, name, gpu)))
            put(2 * hardware.cores())
        if source.whole:
            put(0)
        del source  # frees memory for the next one
    put(0)


def _block(
    source: tensors.Source, rows: range, kinds: Mapping[Type, Floats | None], name: str, gpu: GpuQuantizer
) -> dict[Type, quantize.Chunk]:
    """Return some rows of a tensor in each type."""
    values = source.read(rows.start, rows.stop)
    return {kind: quantize.slab(values, kind, name, importance, gpu) for kind, importance in kinds.items()}
