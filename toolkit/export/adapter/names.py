"""The names of an adapter's tensors, as PEFT writes them, and as other tools' wrappers leave them.

torch.compile, DDP, FSDP, activation checkpointing and DeepSpeed wrap modules, and each wrapper writes its own part into
every name; a PEFT model that was wrapped again begins twice. None of these parts says anything about the weights.
"""

import re
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.formats.safetensors_header import TensorInfo

PREFIX = "base_model.model."
# Parts that wrappers write anywhere in a name: torch.compile, FSDP, activation checkpointing.
_ANYWHERE = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
INNER = "language_model"  # where a model that also sees images has its text; alone it has the names without
# Parts that are in front only: DDP and DeepSpeed's engine, Lightning and FSDP's older form, PEFT itself, TRL's model
# with a value head, trainers of policies, and classes that hold the model as an attribute.
_IN_FRONT = (
    "module", "_forward_module", "_fpw_module", "base_model", "pretrained_model", "policy", "_policy", "policy_model",
    "_model",
)  # fmt: skip
# A state dict that was not saved by save_pretrained still has the adapter's name behind each matrix.
_MATRIX = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector)\.([^.]+)(\.weight|\.bias)?"
)
_SAVED = re.compile(r"\.(modules_to_save)\.([^.]+)\.(weight|bias)")
ANY_WRAPPER = re.compile(r"(?:{})\\?\.".format("|".join(_ANYWHERE)))


def plain_names(tensors: Mapping[str, TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    """Return an adapter's tensors under the names that PEFT's save_pretrained writes.

    One line says what was removed. Raises ToolkitError if two names become one.
    """
    plain: dict[str, TensorInfo] = {}
    taken: Counter[str] = Counter()
    _check_one_adapter(tensors, folder)
    for name, tensor in tensors.items():
        short, parts = plain_name(name)
        if short in plain:
            raise ToolkitError(
                f"the adapter in `{folder}` holds `{plain[short].name}` and `{name}`, which are one tensor without "
                "their wrappers' prefixes",
                hint="save the adapter once, from the unwrapped model: accelerator.unwrap_model(model)",
            )
        plain[short] = tensor
        taken.update(dict.fromkeys(parts, 1))
    if taken:
        listed = ", ".join(f"`{part}`" for part in taken)
        console.info(f"adapter: {listed} removed from the names of {max(taken.values())} of {len(tensors)} tensors")
    return plain


def _check_one_adapter(tensors: Mapping[str, TensorInfo], folder: Path) -> None:
    """Raise ToolkitError for a state dict of a model that has several adapters."""
    found = [match[2] for name in tensors for match in (_MATRIX.search(name), _SAVED.search(name)) if match]
    names = [name for name in dict.fromkeys(found) if name not in ("weight", "bias")]
    if len(names) > 1:
        listed = ", ".join(f"`{name}`" for name in names)
        raise ToolkitError(
            f"the adapter in `{folder}` is a state dict of {len(names)} adapters: {listed}",
            hint=f"save the one you want: model.save_pretrained(DIR, selected_adapters=[{names[0]!r}]); PEFT writes it "
            f"into DIR, or into DIR/{names[0]}",
        )


def plain_name(name: str) -> tuple[str, list[str]]:
    """Return a tensor's name as PEFT writes it, and the parts that were removed from it."""
    parts = name.split(".")
    taken = [part for part in parts if part in (*_ANYWHERE, INNER)]
    parts = [part for part in parts if part not in (*_ANYWHERE, INNER)]
    start = 0
    while start < len(parts) and parts[start] in (*_IN_FRONT, "model"):
        start += 1
    front, rest = parts[:start], parts[start:]
    # `model.` belongs to the base's own name if the rest is in the inner model.
    inner = ["model"] if rest[:1] != ["lm_head"] and "model" in front else []
    if inner:
        del front[len(front) - 1 - front[::-1].index("model")]
    usual = PREFIX.rstrip(".").split(".")
    taken += [part for part in front if part not in usual]
    if front.count("base_model") > 1 or front.count("model") > 1:
        taken.append("base_model.model")
    short = ".".join([*usual, *inner, *rest])
    cut = _SAVED.sub(r".\1.\3", _MATRIX.sub(_without_adapter, short))
    if cut != short:
        taken.append(
            next(m[2] for m in (_MATRIX.search(short), _SAVED.search(short)) if m and m[2] not in ("weight", "bias"))
        )
    return cut, taken


def _without_adapter(match: re.Match[str]) -> str:
    matrix, adapter, leaf = match[1], match[2], match[3] or ""
    return match[0] if not leaf and adapter in ("weight", "bias") else f".{matrix}{leaf}"


def plain_patterns(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return an adapter's settings with the wrappers' parts removed from its patterns of module names."""

    def cut(value: Any) -> Any:
        if isinstance(value, str):
            return ANY_WRAPPER.sub("", value)
        if isinstance(value, list):
            return [inner(cut(each)) for each in value]
        return value

    def inner(value: Any) -> Any:
        return re.sub(rf"^{INNER}\.|(?<=\.){INNER}\.", "", value) if isinstance(value, str) else value

    changed = {
        key: cut(config[key]) for key in ("target_modules", "exclude_modules", "modules_to_save") if key in config
    }
    for key in ("rank_pattern", "alpha_pattern", "trainable_token_indices"):
        if isinstance(config.get(key), dict):
            changed[key] = {inner(cut(pattern)): value for pattern, value in config[key].items()}
    return {**config, **changed}


def plain_model(tensors: Mapping[str, TensorInfo], folder: Path) -> dict[str, TensorInfo]:
    """Return a whole model's tensors under the names that transformers' save_pretrained writes.

    One line says what was removed. Raises ToolkitError if two names become one.
    """
    wrappers = {*_ANYWHERE, *_IN_FRONT}
    if not any(wrappers.intersection(name.split(".")) for name in tensors):
        return dict(tensors)
    plain: dict[str, TensorInfo] = {}
    taken: dict[str, None] = {}
    for name, tensor in tensors.items():
        short, parts = plain_name(name)
        short = short.removeprefix(PREFIX)
        if short in plain:
            raise ToolkitError(
                f"the model in `{folder}` holds `{plain[short].name}` and `{name}`, which are one tensor without their "
                "wrappers' prefixes",
                hint="save the model once, unwrapped: accelerator.unwrap_model(model).save_pretrained(DIR)",
            )
        plain[short] = tensor
        taken.update(dict.fromkeys(part for part in parts if part in wrappers))
    console.info(f"model: {', '.join(f'`{part}`' for part in taken)} removed from the names of its tensors")
    return plain
