"""What each tensor of a LoRA adapter is: LoRA's part of a module, the module's own copy, or the base's tensor.

Names and their meaning: PEFT's utils/save_and_load.py, tuners/lora/layer.py, tuners/trainable_tokens/layer.py.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.export.adapter.deltas import HEAD, OTHER_BASE
from toolkit.export.adapter.names import PREFIX
from toolkit.formats import checkpoint
from toolkit.formats.names import first_names
from toolkit.formats.safetensors_header import AGAIN, TensorInfo
from toolkit.model.model_config import ModelConfig

# MODULE.FORM: what the tensor is to its module. `{}` is weight or bias.
_NAME = re.compile(
    r"(?P<module>.+?)\.(?P<form>"
    r"lora_A\.weight|lora_B\.weight|lora_B\.bias|lora_embedding_A|lora_embedding_B|lora_magnitude_vector(?:\.weight)?"
    r"|token_adapter\.trainable_tokens_delta|(?:token_adapter\.)?base_layer\.(?:weight|bias)"
    r"|original_module\.(?:weight|bias)|modules_to_save\.(?:weight|bias)|weight|bias)"
)


@dataclass
class SortedTensors:
    """An adapter's tensors by what they are: LoRA's by module and form, complete ones by the base's tensor."""

    parts: dict[str, dict[str, TensorInfo]] = field(default_factory=dict)
    own: dict[str, TensorInfo] = field(default_factory=dict)  # of the module alone: modules_to_save
    base: dict[str, TensorInfo] = field(default_factory=dict)  # the base's own, as trained or resized


def sort_tensors(
    folder: Path,
    tensors: Mapping[str, TensorInfo],
    config: Mapping[str, Any],
    weights: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
) -> SortedTensors:
    """Give every tensor its one meaning; raises ToolkitError for those that have none, with their names."""
    found, strangers = SortedTensors(), []
    saved = tuple(config.get("modules_to_save") or ())
    for name, tensor in tensors.items():
        match = _NAME.fullmatch(name.removeprefix(PREFIX)) if name.startswith(PREFIX) else None
        module, form = (match["module"], match["form"]) if match else ("", "")
        leaf = "bias" if form.endswith("bias") and form != "lora_B.bias" else "weight"
        target = f"{module}.{leaf}"
        if not match or (target not in weights and not (target == HEAD and model.tied)):
            strangers.append(tensor.name)
        elif form.startswith(("lora_", "token_adapter.trainable")):
            found.parts.setdefault(module, {})[form.removesuffix(".weight")] = tensor
        else:
            trained = form.startswith("modules_to_save.") or (form == leaf and module.endswith(saved))
            place = found.own if trained else found.base
            if target in place and not checkpoint.same(place[target], tensor):
                raise ToolkitError(
                    f"the adapter in `{folder}` holds `{target}` twice, with different values: `{name}`",
                    hint=AGAIN,
                )
            place[target] = tensor
    seeing = [name for name in strangers if any(part in name for part in checkpoint.SIGHT)]
    if seeing:
        raise ToolkitError(
            f"the adapter in `{folder}` changes the vision tower, but the text alone is exported: "
            f"{first_names(seeing, 5)}",
            hint='train without it: LoraConfig(exclude_modules=".*(vision_tower|multi_modal_projector|visual).*")',
        )
    if strangers:
        raise ToolkitError(
            f"the adapter in `{folder}` holds tensors that belong to no weight of the base: "
            f"{first_names(strangers, 5)}",
            hint=OTHER_BASE,
        )
    return found
