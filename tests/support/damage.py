"""Damage a copy of a model or adapter, and see that an export fails without touching what was there."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import models
from toolkit.core.errors import ToolkitError, explain
from toolkit.export import export

Tensors = dict[str, torch.Tensor]
Q_PROJ = "model.layers.1.self_attn.q_proj.weight"


def thorough(examples: int, more: int) -> pytest.MarkDecorator:
    """Give a fuzz test its number of examples: some in every run, more in the slow ones."""
    return pytest.mark.parametrize("examples", [examples, pytest.param(more, marks=pytest.mark.slow)])


def targets(work: Path) -> dict[str, Path]:
    return {name: work / "out" / f"{name}.gguf" for name in ("F16", "Q4_K_M")}


def fails(work: Path, words: str, base: str = "base", adapter: str | None = "adapter") -> ToolkitError:
    """Export must fail with `words` in its message, and leave exactly the former files."""
    with pytest.raises((ToolkitError, OSError)) as caught:
        export(work / base, work / adapter if adapter else None, targets(work), models.TEMPLATE, "small")
    problem = explain(caught.value)
    assert problem is not None
    assert words in problem.message
    assert problem.hint
    former_files_are_intact(work)
    return problem


def former_files_are_intact(work: Path) -> None:
    assert sorted(path.name for path in (work / "out").iterdir()) == ["F16.gguf", "Q4_K_M.gguf"]
    assert all(path.read_bytes() == b"former" for path in targets(work).values())


def edit_weights(path: Path, change: Callable[[Tensors], Any]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)


def edit_json(path: Path, **values: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
