"""A base's config.json checked against its tensors, before anything is laid out by it."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats import checkpoint
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model.families.family import Family, Layout
from toolkit.model.model_config import CONFIG, ModelConfig

APART = "its config.json and weights do not match, or files are missing: copy the base again"
_LAYER = re.compile(r"(?:model\.layers|blk)\.([0-9]{1,9})\.")


def layers_in(names: Iterable[str]) -> int:
    """Count the layers that tensors belong to, by their names in a checkpoint or in GGUF."""
    return len({match[1] for name in names if (match := _LAYER.match(name))})


def check_layers(base: Path, model: ModelConfig, stored: Iterable[str]) -> None:
    """Raise ToolkitError unless the weights have as many layers as config.json states."""
    there = layers_in(stored)
    if model.layers != there:
        raise ToolkitError(
            f"`{base / CONFIG}` states {model.layers:,} layers (`num_hidden_layers`), but the weights have {there:,}",
            hint=APART,
        )


def checked_layouts(base: Path, family: Family, model: ModelConfig, stored: Mapping[str, TensorInfo]) -> list[Layout]:
    """Return the place of every tensor: each tensor of the checkpoint has one, and each place has its tensor.

    Raises ToolkitError that names file and tensor. A layer that only config.json has is found before any is laid out.
    """
    check_layers(base, model, stored)
    layouts = family.layouts(model)
    for layout in layouts:
        tensor = stored.get(layout.source)
        if tensor is None:
            raise ToolkitError(
                f"the base model in `{base}` lacks tensor `{layout.source}`, which its {CONFIG} requires", hint=APART
            )
        checkpoint.check_readable(tensor)
        if tensor.shape != layout.stored_shape:
            raise ToolkitError(
                f"tensor `{layout.source}` in `{tensor.path}` has shape {list(tensor.shape)}, "
                f"but config.json says {list(layout.stored_shape)}",
                hint=APART,
            )
    places = {layout.source for layout in layouts}
    head = {"lm_head.weight"} if model.tied else set()  # compared with the embedding when the export starts
    unknown = [
        name
        for name in stored
        if name not in places | head and not (name.endswith(family.ignored) or name.startswith(family.left_out))
    ]
    if unknown:
        shown = ", ".join(f"`{visible(name)}`" for name in unknown[:5])
        raise ToolkitError(f"the base model in `{base}` holds {len(unknown)} unknown tensors: {shown}", hint=APART)
    return layouts
