"""Modules that an adapter's settings and its weights do not share; PEFT's rule decides which a setting names."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.export.adapter.config import CONFIG
from toolkit.export.adapter.deltas import EMBEDDING, HEAD
from toolkit.export.adapter.names import INNER
from toolkit.formats.names import three_names

ENDS = {EMBEDDING.removesuffix(".weight"): HEAD.removesuffix(".weight")}
ENDS |= {head: embedding for embedding, head in ENDS.items()}


def unkept_promise(config: Mapping[str, Any], there: Collection[str], weights: Mapping[str, tuple[int, ...]]) -> str:
    """Say how many of the modules in `target_modules` have weights in the adapter; empty if all have.

    `there` are the modules that it has weights for, `weights` the base's names and shapes. PEFT's rule decides which
    modules a setting names (tuners/tuners_utils.py, check_target_module_exists).
    """
    if not config.get("target_modules"):
        return ""
    modules = [name.removesuffix(".weight") for name, shape in weights.items() if len(shape) == 2]
    named = [module for module in modules if not left_out_by(config, module)]
    absent = [module for module in named if module not in there]
    if not absent:
        return ""
    return (
        f"the adapter has LoRA for {len(named) - len(absent)} of {len(named)} modules that it names; "
        f"unchanged: {three_names(absent)}"
    )


def check_named(
    config: Mapping[str, Any], parts: Mapping[str, Collection[str]], own: Collection[str], path: Path
) -> str:
    """Raise ToolkitError if the weights hold what the settings leave out: PEFT would load it nowhere.

    `parts` are the forms of tensors by module, `own` the complete modules that were trained, `path` the weights' file.
    Settings without `target_modules` contradict nothing: returns a warning then, else "".
    """
    lora = {module: forms for module, forms in parts.items() if any(form.startswith("lora_") for form in forms)}
    tied = bool(config.get("ensure_weight_tying"))
    reasons: dict[str, str] = {}
    for module, forms in lora.items():
        reason = left_out_by(config, module)
        if tied and module in ENDS:  # PEFT names both ends if one of them is named
            reason = reason and left_out_by(config, ENDS[module])
        if not reason and "lora_B.bias" in forms and not config.get("lora_bias"):
            reason = "lora_bias"
        reasons[module] = reason
    saved = tuple(config.get("modules_to_save") or ())
    reasons |= {module: "modules_to_save" for module in own if not module.endswith(saved)}
    left = [module for module, reason in reasons.items() if reason]
    if left:
        keys = ", ".join(f"`{key}`" for key in dict.fromkeys(reasons[module] for module in left))
        raise ToolkitError(
            f"`{path}` holds trained weights for {len({*lora, *own})} modules, but {keys} in {CONFIG} "
            f"{'leave' if ',' in keys else 'leaves'} out {len(left)} of them: {three_names(left)}",
            hint=f"PEFT would not load these: correct {keys} in {CONFIG} if they were trained, else delete "
            f"their tensors from {path.name}",
        )
    if not lora or config.get("target_modules"):
        return ""
    return (
        f"{CONFIG} names no `target_modules`: LoRA is merged for all {len(lora)} modules in the weights; "
        "PEFT would load it only for its default modules, or refuse"
    )


def left_out_by(config: Mapping[str, Any], module: str) -> str:
    """Return the setting by which PEFT gives a module no LoRA, "" if it does; no `target_modules` name every module."""
    wanted = config.get("target_modules")
    if _matches(config.get("exclude_modules"), module):
        return "exclude_modules"
    if any(re.search(rf"(^|\.){re.escape(name)}(\.|$)", module) for name in config.get("modules_to_save") or ()):
        return "modules_to_save"
    if wanted and not (_matches(wanted, module) or _is_linear(wanted, module)):
        return "target_modules"
    if (isinstance(wanted, str) and wanted) or (isinstance(wanted, list) and module in wanted):
        return ""
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return ""
    layer = _layer(config.get("layers_pattern"), module)
    return "" if layer in (layers if isinstance(layers, list) else [layers]) else "layers_to_transform"


def _layer(patterns: Any, module: str) -> int | None:
    """Return a module's number in the list that one of `patterns` names; without patterns, in any list."""
    known = [patterns] if isinstance(patterns, str) else patterns if isinstance(patterns, list) else []
    for name in [name for name in known if isinstance(name, str) and name] or [r"[^.]*"]:
        try:
            found = re.match(rf"(?:^|.*?\.){name}\.(\d+)\.", module)
        except (re.error, RecursionError, OverflowError):
            continue
        if found is not None:
            number = found[found.re.groups]  # None where a pattern like `a|b` matched without one
            return int(number) if number else None
    return None


def _is_linear(wanted: Any, module: str) -> bool:
    return isinstance(wanted, str) and wanted.lower() == "all-linear" and module not in ENDS


def _matches(pattern: Any, module: str) -> bool:
    if isinstance(pattern, str):
        # A regular expression may name the text of a model that also sees images by its place there.
        inside = module.removeprefix("model.")
        forms = (module, f"model.{INNER}.{inside}", f"{INNER}.{module}")
        try:
            return any(re.fullmatch(pattern, form) for form in forms)
        except (re.error, RecursionError, OverflowError):
            return False
    names = pattern if isinstance(pattern, list) else []
    return any(module == name or module.endswith(f".{name}") for name in names if isinstance(name, str))
