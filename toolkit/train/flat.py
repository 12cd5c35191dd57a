"""The adapter in one piece: weights and gradients of hundreds of matrices as views of one long vector each.

A matrix at a time, clipping and the optimizer are hundreds of launches, while the card waits for Python. So is mixed
precision: instead of every matrix being rounded in every pass, and its gradient widened after it, the model computes
with views of a 16-bit copy of the vector, rounded once a step. Every matrix begins a block of its own, so that 8-bit
moments are scaled as they are matrix by matrix (bitsandbytes, 256 values).
"""

from dataclasses import dataclass
from typing import Any

BLOCK = 256
MOST = 2**30  # values in one vector: bitsandbytes counts them in 32 bits


@dataclass(frozen=True)
class Part:
    """One matrix: the model's parameter, its value and gradient in the vectors, and where a pass adds its gradient."""

    parameter: Any
    weight: Any
    gradient: Any
    place: Any


@dataclass(frozen=True)
class Flat:
    """Vectors that an optimizer can take for parameters, their copies in 16 bits where the model has such, and parts.

    `copies` are (vector, copy) pairs.
    """

    vectors: list[Any]
    copies: list[tuple[Any, Any]]
    parts: list[Part]

    @staticmethod
    def of(parameters: list[Any], dtype: Any = None, most: int = MOST) -> "Flat":
        """Move the values of parameters, all on one device, into vectors of at most `most` values, one dtype in each.

        Parameters stay what they are to the model, but with `dtype` those in float32 become copies of that dtype. From
        here on the gradients of a pass add up in place.
        """
        flat = Flat([], [], [])
        members: list[Any] = []
        room = 0
        for parameter in parameters:
            if members and (room + _room(parameter) > most or members[0].dtype != parameter.dtype):
                flat._add(members, dtype)
                members, room = [], 0
            members.append(parameter)
            room += _room(parameter)
        if members:
            flat._add(members, dtype)
        flat.publish()
        return flat

    def _add(self, members: list[Any], dtype: Any) -> None:
        import torch

        vector = torch.nn.Parameter(members[0].new_zeros(sum(map(_room, members))))
        vector.grad = torch.zeros_like(vector)
        seen = vector
        if dtype not in (None, vector.dtype) and vector.dtype == torch.float32:
            seen = torch.nn.Parameter(vector.detach().to(dtype))
            seen.grad = torch.zeros_like(seen)
            self.copies.append((vector, seen))
        start = 0
        for parameter in members:
            part = slice(start, start + parameter.numel())
            vector.data[part] = parameter.data.reshape(-1)
            weight, gradient = (whole[part].view(parameter.shape) for whole in (vector.data, vector.grad))
            place = gradient if seen is vector else seen.grad[part].view(parameter.shape)
            parameter.data = weight if seen is vector else seen.data[part].view(parameter.shape)
            parameter.grad = place
            self.parts.append(Part(parameter, weight, gradient, place))
            start += _room(parameter)
        self.vectors.append(vector)

    def gather(self) -> None:
        """Add the gradients of a pass to the vectors'; where something put one elsewhere, it is taken from there."""
        for part in self.parts:
            if part.parameter.grad is not part.place:
                part.place.zero_() if part.parameter.grad is None else part.place.copy_(part.parameter.grad)
                part.parameter.grad = part.place
        for vector, copy in self.copies:
            vector.grad.add_(copy.grad)
            copy.grad.zero_()

    def zero(self) -> None:
        """Set all gradients to zero."""
        for vector in (*self.vectors, *(copy for _, copy in self.copies)):
            vector.grad.zero_()
        for part in self.parts:
            part.parameter.grad = part.place

    def publish(self) -> None:
        """Show the model what the vectors hold now."""
        for vector, copy in self.copies:
            copy.data.copy_(vector.data)

    def release(self) -> None:
        """Give the parameters their whole precision back, and no gradients; nothing is trained after it."""
        for part in self.parts:
            part.parameter.grad = None
            part.parameter.data = part.weight


def _room(parameter: Any) -> int:
    return int(-(-parameter.numel() // BLOCK) * BLOCK)
