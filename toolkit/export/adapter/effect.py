"""Faults of an adapter: modules that its settings name but it has no weights for, and weights that change nothing."""

import re
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from toolkit.core import console, hardware
from toolkit.export.adapter.deltas import EMBEDDING, HEAD, LoraDelta
from toolkit.formats.tensor_values import read_tensor

if TYPE_CHECKING:
    from toolkit.export.planning import PlannedTensor


def unkept_promise(config: Mapping[str, Any], there: Collection[str], weights: Mapping[str, tuple[int, ...]]) -> str:
    """Say how many of the modules in `target_modules` have weights in the adapter; empty if all have.

    `there` are the modules that it has weights for, `weights` the base's names and shapes. PEFT's rule decides which
    modules a setting names (tuners/tuners_utils.py, check_target_module_exists).
    """
    modules = [name.removesuffix(".weight") for name, shape in weights.items() if len(shape) == 2]
    named = [module for module in modules if _is_named(config, module)]
    absent = [module for module in named if module not in there]
    if not absent:
        return ""
    shown = ", ".join(f"`{module}`" for module in absent[:3]) + (", …" if len(absent) > 3 else "")
    return (
        f"the adapter has LoRA for {len(named) - len(absent)} of {len(named)} modules that it names; unchanged: {shown}"
    )


def _is_named(config: Mapping[str, Any], module: str) -> bool:
    wanted, excluded = config.get("target_modules"), config.get("exclude_modules")
    if _matches(excluded, module) or not (wanted and (_matches(wanted, module) or _is_linear(wanted, module))):
        return False
    layers = config.get("layers_to_transform")
    if layers is None or isinstance(wanted, str):
        return True
    found = re.search(r"\.layers\.(\d+)\.", module)
    return found is not None and int(found[1]) in (layers if isinstance(layers, list) else [layers])


def _is_linear(wanted: Any, module: str) -> bool:
    inner = module not in (EMBEDDING.removesuffix(".weight"), HEAD.removesuffix(".weight"))
    return isinstance(wanted, str) and wanted.lower() == "all-linear" and inner


def _matches(pattern: Any, module: str) -> bool:
    if isinstance(pattern, str):
        try:
            return re.fullmatch(pattern, module) is not None
        except (re.error, RecursionError, OverflowError):
            return False
    names = pattern if isinstance(pattern, list) else []
    return any(module == name or module.endswith(f".{name}") for name in names if isinstance(name, str))


def say_effect(tensors: "Sequence[PlannedTensor]", gap: str) -> None:
    """Warn of modules without weights, and of LoRA that changes nothing because one of its factors is all zeros."""
    if gap:
        console.warn(gap)
    deltas = [tensor.change for tensor in tensors if isinstance(tensor.change, LoraDelta)]
    if not deltas:
        return
    with ThreadPoolExecutor(hardware.cores()) as pool:
        idle = [delta for delta in deltas if delta.magnitude is None and _is_zero(delta, pool)]
    others = any(tensor.replaced or not isinstance(tensor.change, LoraDelta | None) for tensor in tensors)
    if not idle:
        return
    what = f"{len(idle)} of {len(deltas)} LoRA products are all zeros"
    if len(idle) == len(deltas) and not others:
        console.warn(f"this adapter changes nothing: {what}; it was not trained, or was saved before training")
    else:
        console.warn(f"{what}: these modules stay unchanged, the first is `{idle[0].b.name}`")


def _is_zero(delta: LoraDelta, pool: ThreadPoolExecutor) -> bool:
    return delta.scale == 0 or any(not read_tensor(factor, pool).any() for factor in (delta.b, delta.a))
