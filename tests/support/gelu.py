"""GELU as llama.cpp computes it on a CPU, given to transformers' Gemma so that all the rest compares to rounding."""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any
from unittest.mock import patch

import torch

GEMMAS = ("gemma2", "gemma3")


class TableGelu(torch.nn.Module):  # type: ignore[misc]
    """GELU from a table of 65,536 float16 values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round input and output to float16; beyond ±10 it is the input or nothing."""
        near = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, near))


@contextmanager
def table_gelu() -> Iterator[None]:
    """Give every Gemma that is loaded meanwhile the runtime's GELU."""
    patches = []
    for family in GEMMAS:
        module = import_module(f"transformers.models.{family}.modeling_{family}")
        kind = getattr(module, f"{family.capitalize()}MLP")
        patches.append(patch.object(kind, "__init__", _with_table(kind.__init__)))
    for each in patches:
        each.start()
    try:
        yield
    finally:
        for each in patches:
            each.stop()


def _with_table(former: Any) -> Any:
    def changed(self: Any, config: Any, *more: Any) -> None:
        former(self, config, *more)
        self.act_fn = TableGelu()

    return changed
