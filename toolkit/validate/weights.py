"""The weights of a base in float32, each read from its files when it is asked for: nothing is kept in memory."""

import mmap
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit import kernels
from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.formats.checkpoint import READABLE, check_readable, open_folder
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.formats.tensor_values import read_rows, read_tensor
from toolkit.model.hub_pieces import at_hand
from toolkit.model.hub_range import HubShards
from toolkit.model.merge_base import OtherBase


@dataclass(frozen=True)
class Weights:
    """The tensors of a model folder, by the names in its files; bitsandbytes' 4 bits are read dequantized.

    `through` is a dtype if the linear layers must be taken through 4 bits from it, as training did when it loaded them.
    With `shards` the base is on the hub, and a tensor is fetched, used and dropped; `kept` is one that is read by rows.
    """

    folder: Path
    tensors: dict[str, TensorInfo]
    through: str = ""
    shards: HubShards | None = None
    kept: "Kept" = field(default_factory=lambda: Kept())

    def read(self, name: str, *, linear: bool = False, device: str = "cpu") -> Any:
        """Return one tensor in float32; `linear` says that it is the weight of a linear layer that 4 bits change.

        They change it on `device`, where it then is: a CPU takes seconds for a large layer. Raises ToolkitError if the
        file ends early or a value is NaN or infinite.
        """
        import torch

        with self._at_hand(name) as tensor, ThreadPoolExecutor(hardware.cores()) as pool:
            found = torch.from_numpy(read_tensor(tensor, pool))
        return _through_four_bits(found.to(device), self.through) if linear and self.through else found

    def read_rows(self, name: str, start: int, end: int) -> npt.NDArray[np.float32]:
        """Return some rows of a matrix in float32; not for one in 4 bits (`has_rows`)."""
        tensor = self.tensors[name]
        if self.shards is not None:
            tensor = self.kept.get(self.shards, tensor)
        return kernels.widened(read_rows(tensor, start, end))

    def _at_hand(self, name: str) -> AbstractContextManager[TensorInfo]:
        tensor = self.tensors[name]
        return nullcontext(tensor) if self.shards is None else at_hand(self.shards, tensor)

    def has_rows(self, name: str) -> bool:
        """Tell whether single rows of a tensor can be read."""
        return self.tensors[name].dtype in READABLE

    def read_some(self, name: str, wanted: Sequence[int]) -> npt.NDArray[np.float32]:
        """Return a matrix with only the `wanted` rows, ascending, filled in; the others take no memory."""
        shape = self.tensors[name].shape
        room = mmap.mmap(-1, 4 * prod(shape))
        if hasattr(mmap, "MADV_NOHUGEPAGE"):  # else each row takes 2 MB
            room.madvise(mmap.MADV_NOHUGEPAGE)
        table = np.frombuffer(room, np.float32).reshape(shape)
        for index in wanted:
            table[index : index + 1] = self.read_rows(name, index, index + 1)
        return table


class Kept:
    """The matrix of a hub's base whose rows are being read, until another one's are."""

    def __init__(self) -> None:
        self._tensor: TensorInfo | None = None
        self._name, self._stack = "", ExitStack()

    def get(self, shards: HubShards, tensor: TensorInfo) -> TensorInfo:
        """Return a tensor whose values can be read."""
        if self._name != tensor.name or self._tensor is None:
            self._stack.close()
            self._tensor, self._name = self._stack.enter_context(at_hand(shards, tensor)), tensor.name
        return self._tensor


def open_weights(folder: Path, shards: HubShards | None = None) -> Weights:
    """List the weights of a model folder; raises ToolkitError if they are absent or of a type that is not read.

    With `shards`, whose folder it is, each is fetched when it is read.
    """
    tensors = open_folder(folder)
    for tensor in tensors.values():
        check_readable(tensor)
    return Weights(folder, tensors, shards=shards)


def other_weights(other: OtherBase) -> Weights:
    """List the weights of the base that is not merged into; raises ToolkitError if they cannot be read here."""
    if other.folder is None:
        raise ToolkitError(f"the base `{other.label}` is not on this machine")
    if other.through and not hardware.installed("bitsandbytes"):
        raise ToolkitError("bitsandbytes, which quantized the base for training, is not installed here")
    return Weights(other.folder, open_weights(other.folder).tensors, other.through)


def _through_four_bits(weight: Any, dtype: str) -> Any:
    """Quantize and dequantize a weight, as QLoRA does when it loads a 16-bit base."""
    import torch
    from bitsandbytes import functional

    packed, state = functional.quantize_4bit(
        weight.to(getattr(torch, dtype)), blocksize=64, compress_statistics=True, quant_type="nf4"
    )
    return functional.dequantize_4bit(packed, state).float()
