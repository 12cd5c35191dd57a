"""Adapters of mlx_lm.lora, written as PEFT writes them: the same numbers under other names, transposed.

MLX has y + scale * (x @ lora_a) @ lora_b, with lora_a (in, rank) and lora_b (rank, out); DoRA's magnitudes are `m`.
Source: mlx_lm's tuner/lora.py and tuner/dora.py; releases of 2024 also had an `alpha`, and scale * alpha / rank.
"""

import json
import re
import shlex
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.adapter.config import CONFIG
from toolkit.export.adapter.names import PREFIX
from toolkit.export.adapter.weights import WEIGHTS
from toolkit.formats.safetensors_header import AGAIN, TensorInfo, read_header
from toolkit.formats.tensor_values import read_tensor

MLX_WEIGHTS = "adapters.safetensors"
EMBEDDING = "embed_tokens"
BESIDE = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")


def is_mlx(folder: Path) -> bool:
    """Tell whether a folder holds an adapter of MLX, by the name of its weights; perhaps a checkpoint's alone."""
    return bool((folder / MLX_WEIGHTS).is_file() or _checkpoints(folder)) and not (folder / WEIGHTS).is_file()


def _checkpoints(folder: Path) -> list[Path]:
    """List the weights that training saved on its way (0000100_adapters.safetensors), the last one last."""
    return sorted(path for path in folder.glob(f"*_{MLX_WEIGHTS}") if re.fullmatch(r"\d+", path.name.partition("_")[0]))


def check_mlx(folder: Path) -> None:
    """Raise ToolkitError for what an MLX run left that did not come to its end; the hint says how to use it."""
    if not is_mlx(folder):
        return
    weights, found = folder / MLX_WEIGHTS, _checkpoints(folder)
    use = f"use its last checkpoint: cp {shlex.quote(str(found[-1]))} {shlex.quote(str(weights))}" if found else ""
    if not weights.is_file():
        raise ToolkitError(f"the MLX training in `{folder}` did not end: it has no {MLX_WEIGHTS}", hint=use)
    try:
        read_header(weights)
    except ToolkitError as exc:
        again = "the training broke off while it saved: train again, or copy the file again"
        raise ToolkitError(exc.message, hint=use or again, exit_code=exc.exit_code) from None
    if not (folder / CONFIG).is_file():
        stated = '{"model": "BASE", "lora_parameters": {"rank": 8, "scale": 20.0}}'
        raise ToolkitError(
            f"the MLX adapter in `{folder}` has no {CONFIG}, which says its scale and base",
            hint=f"copy it from the training, or write it there with the training's values: {stated}",
        )


def convert_mlx(folder: Path, target: Path) -> None:
    """Write an MLX adapter into `target` as PEFT would have saved it, float32, with the tokenizer next to it.

    Raises ToolkitError for anything but LoRA or DoRA of linear layers and embeddings; the hint says what MLX can do.
    """
    from safetensors.numpy import save_file

    settings = read_json(folder / CONFIG, "give the folder that mlx_lm.lora wrote (--adapter-path)")
    kind = str(settings.get("fine_tune_type", "lora"))
    if kind not in ("lora", "dora"):
        raise _fuse(folder, f"has the fine-tuning type `{kind}`, which is not LoRA", settings)
    given = settings.get("lora_parameters")
    parameters: dict[str, Any] = given if isinstance(given, dict) else {}
    modules: dict[str, dict[str, TensorInfo]] = {}
    for name, tensor in read_header(folder / MLX_WEIGHTS).items():
        match = re.fullmatch(r"(.+)\.(lora_a|lora_b|m)", name)
        if match is None:
            raise _fuse(folder, f"holds `{name}`, which is not LoRA", settings)
        modules.setdefault(match[1], {})[match[2]] = tensor
    ranks = set()
    values: dict[str, np.ndarray] = {}
    with ThreadPoolExecutor(hardware.cores()) as pool:
        for module, parts in modules.items():
            a, b = parts.get("lora_a"), parts.get("lora_b")
            if a is None or b is None or len(a.shape) != 2 or a.shape[1:] != b.shape[:1] or len(b.shape) != 2:
                shapes = {part: list(tensor.shape) for part, tensor in parts.items()}
                raise _fuse(folder, f"holds no pair of LoRA matrices for `{module}`: {shapes}", settings)
            ranks.add(a.shape[1])
            embedded = module.rpartition(".")[2] == EMBEDDING
            if embedded and "m" in parts:
                raise _fuse(folder, f"holds DoRA on `{module}`, whose magnitudes are per row", settings)
            ends = ("lora_embedding_A", "lora_embedding_B") if embedded else ("lora_A.weight", "lora_B.weight")
            for end, tensor in zip(ends, (a, b), strict=True):
                values[f"{PREFIX}{module}.{end}"] = np.ascontiguousarray(read_tensor(tensor, pool).T)
            if "m" in parts:
                values[f"{PREFIX}{module}.lora_magnitude_vector"] = read_tensor(parts["m"], pool)
    if len(ranks) != 1:
        raise _fuse(folder, f"holds matrices of different ranks: {sorted(ranks)}", settings)
    [rank] = ranks
    wanted = _promised(settings, parameters, list(modules))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": settings.get("model"),
        "r": rank,
        "lora_alpha": _scale(parameters, rank, folder) * rank,
        "target_modules": sorted({*modules, *wanted}),
        "use_dora": any("m" in parts for parts in modules.values()),
    }
    save_file(values, target / WEIGHTS, metadata={"format": "pt"})
    (target / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for path in sorted(found for pattern in BESIDE for found in folder.glob(pattern)):
        if path.is_file():
            shutil.copyfile(path, target / path.name)


def _promised(settings: dict[str, Any], parameters: dict[str, Any], modules: list[str]) -> set[str]:
    """Return the modules that MLX would have trained: the same `keys` of each of the last `num_layers` layers.

    A name without a layer means all of them, as in PEFT's target_modules.
    """
    placed = [match for match in (re.fullmatch(r"(.+\.layers)\.(\d{1,6})\.(.+)", name) for name in modules) if match]
    if not placed:
        return set()
    stated = parameters.get("keys")
    keys = {match[3] for match in placed}
    if isinstance(stated, list):
        keys |= {key for key in stated if isinstance(key, str) and key}
    numbers = {int(match[2]) for match in placed}
    count = settings.get("num_layers", settings.get("lora_layers"))
    last = max(numbers)
    if type(count) is int and 0 < count <= last + 1:
        numbers |= set(range(last - count + 1, last + 1))
    elif type(count) is int:
        return keys
    return {f"{placed[0][1]}.{number}.{key}" for number in numbers for key in keys}


def _scale(parameters: dict[str, Any], rank: int, folder: Path) -> float:
    scale, alpha = parameters.get("scale", 20.0), parameters.get("alpha", rank)
    for key, value in (("scale", scale), ("alpha", alpha)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e30:
            raise ToolkitError(f"`{folder / CONFIG}` has no valid `{key}`: {value!r}", hint=AGAIN)
    return float(scale) * float(alpha) / rank


def _fuse(folder: Path, what: str, settings: dict[str, Any]) -> ToolkitError:
    base = settings.get("model")
    named = shlex.quote(base) if isinstance(base, str) and base else "BASE"
    there = shlex.quote(str(folder))
    return ToolkitError(
        f"the MLX adapter in `{folder}` {what}",
        hint=f"merge it with MLX: mlx_lm.fuse --model {named} --adapter-path {there} --save-path FUSED "
        "(--dequantize for a base in 4 bits), then `toolkit export --model FUSED`",
    )
