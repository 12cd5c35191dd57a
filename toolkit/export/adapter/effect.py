"""Faults of an adapter: modules that its settings and its weights do not share, and weights that change nothing."""

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from toolkit.core import console, hardware
from toolkit.core.errors import ToolkitError
from toolkit.export.adapter.config import CONFIG
from toolkit.export.adapter.deltas import EMBEDDING, HEAD, LoraDelta
from toolkit.export.adapter.names import INNER
from toolkit.formats.names import three_names
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.formats.tensor_values import read_tensor

if TYPE_CHECKING:
    from toolkit.export.planning import PlannedTensor

LEAST = 1e-7  # F16 rounds a weight of 0.001 by up to 5e-7
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


def say_effect(tensors: "Sequence[PlannedTensor]", gap: str, *, base_here: bool = True) -> None:
    """Warn of modules without weights, and of LoRA that changes nothing: a factor is zero, or the product too small.

    DoRA whose product is zero changes nothing either if its magnitudes are the norms of the base's rows; that is looked
    for where the base's weights are on this machine (`base_here`).
    """
    if gap:
        console.warn(gap)
    one_each = {tensor.layout.source: tensor for tensor in tensors}.values()  # two tensors may be parts of one
    changed = [(tensor, tensor.change) for tensor in one_each if isinstance(tensor.change, LoraDelta)]
    if not changed:
        return
    with ThreadPoolExecutor(hardware.cores()) as pool:
        sizes = [(tensor, delta, _largest(delta, pool)) for tensor, delta in changed]
        idle = [(delta, size) for tensor, delta, size in sizes if size < LEAST
                and (delta.magnitude is None or (base_here and _is_its_norm(tensor.stored, delta, pool)))]  # fmt: skip
    others = any(tensor.replaced or not isinstance(tensor.change, LoraDelta | None) for tensor in tensors)
    if not idle:
        return
    small = sum(size > 0 for _, size in idle)
    how = "are all zeros" if not small else "are too small to change a weight" if small == len(idle) else (
        "are all zeros, or too small to change a weight")  # fmt: skip
    what = f"{len(idle)} of {len(changed)} LoRA products {how}"
    if len(idle) == len(changed) and not others:
        console.warn(f"this adapter changes nothing: {what}; it was not trained, or was saved before training")
    else:
        console.warn(f"{what}: these modules stay unchanged, the first is `{idle[0][0].b.name}`")


def _largest(delta: LoraDelta, pool: ThreadPoolExecutor) -> float:
    """Return a bound on each number in scale * B @ A: the longest row of B times the longest column of A."""
    a, b = (read_tensor(factor, pool).astype(np.float64) for factor in (delta.a, delta.b))
    if not a.any() or not b.any():
        return 0.0
    return float(abs(delta.scale) * np.sqrt(np.square(b).sum(axis=1).max() * np.square(a).sum(axis=0).max()))


def _is_its_norm(stored: TensorInfo | None, delta: LoraDelta, pool: ThreadPoolExecutor) -> bool:
    """Tell whether DoRA's magnitudes are the norms that training began with, within the rounding of bfloat16."""
    if stored is None or delta.magnitude is None:
        return False
    weight = read_tensor(stored, pool)
    norms = np.sqrt(np.square(weight).sum(axis=0 if delta.embedding else 1, dtype=np.float64))
    return bool(np.allclose(read_tensor(delta.magnitude, pool), norms, rtol=2**-8, atol=0))
