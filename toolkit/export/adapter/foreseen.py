"""The adapter that training will write, as the exporter would find it: from the settings and the base's shapes."""

from collections.abc import Mapping
from pathlib import Path

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.train_settings import TrainSettings
from toolkit.export.adapter.config import check_config
from toolkit.export.adapter.deltas import EMBEDDING, HEAD, Adapter
from toolkit.export.adapter.named_modules import left_out_by
from toolkit.export.adapter.names import PREFIX
from toolkit.export.adapter.weights import adapter_of
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model.model_config import ModelConfig


def foreseen_adapter(
    settings: TrainSettings, weights: Mapping[str, tuple[int, ...]], model: ModelConfig, folder: Path
) -> Adapter:
    """Return what an adapter by these settings will change; `folder` is where it will be.

    `weights` are the base's names and shapes, `model` its sizes. PEFT's rule decides which modules a target names.
    Raises ToolkitError for targets that no layer has, and for an adapter that could not be merged.
    """
    config = {
        "peft_type": "LORA",
        "r": settings.lora_r,
        "lora_alpha": settings.lora_alpha,
        "use_rslora": settings.use_rslora,
        "target_modules": settings.target_modules,
    }
    check_config(config, folder)
    matrices = {name: shape for name, shape in weights.items() if len(shape) == 2 and name.endswith(".weight")}
    if model.tied and EMBEDDING in matrices:
        matrices[HEAD] = matrices[EMBEDDING]
    modules = [name.removesuffix(".weight") for name in matrices]
    unknown = [
        target
        for target in settings.target_modules
        if all(left_out_by({**config, "target_modules": [target]}, module) for module in modules)
    ]
    if unknown:
        layers = dict.fromkeys(module.rpartition(".")[2] for module in modules)
        raise ToolkitError(
            f"train.target_modules names layers that this base does not have: {', '.join(unknown)}",
            hint=f"choose among its layers: {', '.join(layers)}",
            exit_code=MISSING,
        )
    tensors = {}
    for module in modules:
        if not left_out_by(config, module):
            down, across = matrices[f"{module}.weight"]
            shapes = {"lora_A.weight": (settings.lora_r, across), "lora_B.weight": (down, settings.lora_r)}
            if f"{module}.weight" == EMBEDDING:
                shapes = {"lora_embedding_A": (settings.lora_r, down), "lora_embedding_B": (across, settings.lora_r)}
            for part, shape in shapes.items():
                name = f"{PREFIX}{module}.{part}"
                tensors[name] = TensorInfo(name, folder, "F32", shape, 0, 0)
    return adapter_of(config, tensors, weights, model, folder)
