"""One tensor of an export: its source, place and types, and the memory that it takes."""

from dataclasses import dataclass
from math import prod

from gguf import GGMLQuantizationType

from toolkit.export.adapter.deltas import Change, LoraDelta
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model.families.family import Layout


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the export: its source, its place, and its type in each quantization.

    `stored` is None for a tensor that is computed (rotary factors); `replaced` says that it is the adapter's own
    instead of the base's; `change` is None where no adapter changes it.
    """

    layout: Layout
    stored: TensorInfo | None
    replaced: bool
    change: Change | None
    types: dict[str, GGMLQuantizationType]
    fallbacks: frozenset[str]

    @property
    def name(self) -> str:
        """Its name in GGUF."""
        return self.layout.name

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape, (out, in)."""
        return self.layout.shape


def streams(tensor: PlannedTensor) -> bool:
    """Tell whether a tensor is exported in blocks of rows; all others are complete in memory, in float32.

    Those are vectors and weights in 4 bits, and what an adapter changes other than by LoRA on a linear layer.
    """
    change = tensor.change
    plain = change is None or (isinstance(change, LoraDelta) and not change.embedding and change.magnitude is None)
    stored = tensor.stored
    return stored is not None and not stored.scales and len(tensor.shape) == 2 and plain and tensor.layout.by_blocks


def working_size(tensor: PlannedTensor) -> int:
    """Return the bytes that a tensor takes during the export, without the blocks in progress."""
    if not streams(tensor):
        return whole_size(tensor)
    change = tensor.change
    return 4 * (prod(change.a.shape) + prod(change.b.shape)) if isinstance(change, LoraDelta) else 0


def whole_size(tensor: PlannedTensor) -> int:
    """Return the bytes of a tensor that is in memory as float32; another layout needs a second copy."""
    return 4 * prod(tensor.layout.stored_shape) * (2 if tensor.layout.copied else 1)
