"""An importance matrix and its file, in the layout of llama.cpp's tools/imatrix."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType

from toolkit.core.errors import ToolkitError
from toolkit.formats import gguf_writer
from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_reader import GgufData, open_gguf
from toolkit.formats.gguf_writer import Metadata

SUMS, COUNTS = ".in_sum2", ".counts"
INPUTS = "toolkit.imatrix.inputs"  # our own key in the file; llama.cpp ignores it


@dataclass(frozen=True)
class Imatrix:
    """Per GGUF tensor name: `sums` of squared inputs (one float32 a column) over `counts` tokens.

    `inputs` is the `digest` of what it was measured on, empty in a file that is not ours.
    """

    sums: dict[str, Floats]
    counts: dict[str, int]
    chunks: int
    chunk_size: int
    dataset: str
    inputs: str = ""

    def importance(self) -> dict[str, Floats]:
        """Return the mean square of every input column, as llama.cpp's quantizer takes it; ones where none was seen."""
        return {
            name: sums / np.float32(self.counts[name]) if self.counts[name] else np.ones_like(sums)
            for name, sums in self.sums.items()
        }


def write_imatrix(path: Path, matrix: Imatrix) -> None:
    """Write an importance matrix completely or not at all, in the layout of llama.cpp's tools/imatrix."""
    metadata: Metadata = {
        "general.type": ("imatrix", GGUFValueType.STRING),
        "imatrix.datasets": ([matrix.dataset], GGUFValueType.ARRAY),
        "imatrix.chunk_count": (matrix.chunks, GGUFValueType.UINT32),
        "imatrix.chunk_size": (matrix.chunk_size, GGUFValueType.UINT32),
        **({INPUTS: (matrix.inputs, GGUFValueType.STRING)} if matrix.inputs else {}),
    }
    parts: dict[str, Floats] = {}
    for name in sorted(matrix.sums):
        parts[name + SUMS] = matrix.sums[name]
        parts[name + COUNTS] = np.array([matrix.counts[name]], np.float32)
    listed = [(name, values.shape, GGMLQuantizationType.F32) for name, values in parts.items()]
    with gguf_writer.gguf_file(path) as file:
        file.write(gguf_writer.header(None, metadata, listed))
        for values in parts.values():
            file.write(values.view(np.uint8))
            file.pad()


def read_imatrix(path: Path) -> Imatrix:
    """Read an importance matrix, ours or llama.cpp's; raises ToolkitError if it is damaged or not one."""
    data = open_gguf(path)
    counts, size = data.metadata.get("imatrix.chunk_count"), data.metadata.get("imatrix.chunk_size")
    datasets = data.metadata.get("imatrix.datasets")
    if type(counts) is not int or type(size) is not int or not isinstance(datasets, list):
        raise _damaged(path, "it names no datasets or no chunks")
    names = [name.removesuffix(SUMS) for name in data.tensors if name.endswith(SUMS)]
    if not names or set(data.tensors) != {name + end for name in names for end in (SUMS, COUNTS)}:
        raise _damaged(path, "its sums and counts do not match")
    sums = {name: _floats(path, data, name + SUMS) for name in names}
    seen = {name: _floats(path, data, name + COUNTS) for name in names}
    for name in names:
        if seen[name].size != 1 or not sums[name].size:
            raise _damaged(path, f"`{name}` is not one matrix of a dense model")
    whole = {name: round(float(values[0])) for name, values in seen.items()}
    inputs = data.metadata.get(INPUTS)
    named = str(datasets[0]) if datasets else ""
    return Imatrix(sums, whole, counts, size, named, inputs if isinstance(inputs, str) else "")


def _floats(path: Path, data: GgufData, name: str) -> Floats:
    tensor = data.tensors[name]
    if tensor.kind != GGMLQuantizationType.F32:
        raise _damaged(path, f"`{name}` is not float32")
    values = np.fromfile(path, np.float32, tensor.size // 4, offset=tensor.offset)
    if 4 * values.size != tensor.size or not np.isfinite(values).all() or (values < 0).any():
        raise _damaged(path, f"`{name}` holds impossible values")
    return values


def _damaged(path: Path, reason: str) -> ToolkitError:
    return ToolkitError(
        f"`{path}` is not an importance matrix: {reason}", hint="compute it again with `toolkit export`"
    )
