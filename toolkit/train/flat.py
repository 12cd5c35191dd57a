"""The adapter in one piece: weights and gradients of hundreds of matrices as views of one long vector each.

A matrix at a time, clipping and the optimizer are hundreds of launches, while the card waits for Python. Every matrix
begins a block of its own, so that 8-bit moments are scaled as they are matrix by matrix (bitsandbytes, 256 values).
"""

from dataclasses import dataclass
from typing import Any

BLOCK = 256
MOST = 2**30  # values in one vector: bitsandbytes counts them in 32 bits


@dataclass(frozen=True)
class Flat:
    """Vectors that an optimizer can take for parameters, and which part of their gradients is whose."""

    vectors: list[Any]
    gradients: list[tuple[Any, Any]]

    @staticmethod
    def of(parameters: list[Any], most: int = MOST) -> "Flat":
        """Move the values of parameters, all on one device, into vectors of at most `most` values, one dtype in each.

        Parameters stay what they are to the model; from here on their gradients add up in place.
        """
        flat = Flat([], [])
        members: list[Any] = []
        room = 0
        for parameter in parameters:
            if members and (room + _room(parameter) > most or members[0].dtype != parameter.dtype):
                flat._add(members)
                members, room = [], 0
            members.append(parameter)
            room += _room(parameter)
        if members:
            flat._add(members)
        return flat

    def _add(self, members: list[Any]) -> None:
        import torch

        vector = torch.nn.Parameter(members[0].new_zeros(sum(map(_room, members))))
        vector.grad = torch.zeros_like(vector)
        start = 0
        for parameter in members:
            part = slice(start, start + parameter.numel())
            vector.data[part] = parameter.data.reshape(-1)
            parameter.data = vector.data[part].view(parameter.shape)
            parameter.grad = vector.grad[part].view(parameter.shape)
            self.gradients.append((parameter, parameter.grad))
            start += _room(parameter)
        self.vectors.append(vector)

    def gather(self) -> None:
        """Take over gradients that something put elsewhere, which is not expected."""
        for parameter, place in self.gradients:
            if parameter.grad is not place:
                place.zero_() if parameter.grad is None else place.copy_(parameter.grad)
                parameter.grad = place

    def zero(self) -> None:
        """Set all gradients to zero."""
        for vector in self.vectors:
            vector.grad.zero_()
        for parameter, place in self.gradients:
            parameter.grad = place


def _room(parameter: Any) -> int:
    return int(-(-parameter.numel() // BLOCK) * BLOCK)
