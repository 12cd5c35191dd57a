"""adapter_config.json: what can be merged, what is refused by name, and PEFT's patterns of module names."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.formats.safetensors_header import AGAIN
from toolkit.model.config_values import brief

CONFIG = "adapter_config.json"
LORA_ONLY = "only plain LoRA and DoRA adapters can be exported: train again as one of them"

# Settings of LoraConfig whose effect no merged weight can hold, and their names in messages; absent or empty means
# not used.
UNSUPPORTED = {
    "layer_replication": "replicated layers (`layer_replication`)",
    "target_parameters": "LoRA on bare parameters (`target_parameters`)",
    "alora_invocation_tokens": "activated LoRA (`alora_invocation_tokens`)",
    "use_qalora": "QALoRA (`use_qalora`)",
    "use_bdlora": "block-diagonal LoRA (`use_bdlora`)",
    "arrow_config": "Arrow routing (`arrow_config`)",
    "kasa_config": "KaSA (`kasa_config`)",
    "monteclora_config": "MonteCLoRA (`monteclora_config`)",
    "megatron_config": "Megatron's parallel layers (`megatron_config`)",
}
LARGEST = 1e30  # of a scale; NaN and infinity are not below it
# These initialisations change the base's own weights, so A and B alone do not make the trained model.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def check_config(config: Mapping[str, Any], folder: Path) -> None:
    """Raise ToolkitError, naming the reason, unless an adapter of these settings can be merged."""
    kind = str(config.get("peft_type"))[:60]
    if kind != "LORA":
        raise ToolkitError(f"the adapter in `{folder}` is {kind}, not LORA, and cannot be merged", hint=LORA_ONLY)
    for key, what in UNSUPPORTED.items():
        if config.get(key):
            raise ToolkitError(f"the adapter in `{folder}` uses {what}, which cannot be merged", hint=LORA_ONLY)
    if config.get("lora_bias") and config.get("use_dora"):
        raise ToolkitError(
            f"the adapter in `{folder}` is DoRA with `lora_bias`, which cannot be merged", hint=LORA_ONLY
        )
    start = config.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGES_BASE):
        raise ToolkitError(
            f"the adapter in `{folder}` was initialised with {start[:60]}, which also changes the base's weights",
            hint="save it again with save_pretrained(…, path_initial_model_for_weight_conversion=…)",
        )
    for key, valid in (("r", _positive), ("lora_alpha", _number)):
        value = config.get(key)
        if not valid(value):
            raise ToolkitError(f"`{folder / CONFIG}` has no valid `{key}`: {brief(value)}", hint=AGAIN)
    for key, valid in (("rank_pattern", _positive), ("alpha_pattern", _number)):
        patterns = config.get(key) or {}
        if not isinstance(patterns, dict) or not all(valid(value) for value in patterns.values()):
            raise ToolkitError(f"`{folder / CONFIG}` has no valid `{key}`: {brief(patterns)}", hint=AGAIN)
        for expression in patterns:
            try:
                re.compile(_at_the_end(expression))
            except (re.error, OverflowError, RecursionError):
                raise ToolkitError(
                    f"`{folder / CONFIG}` has a `{key}` that is not a valid regular expression: {brief(expression)}",
                    hint=AGAIN,
                ) from None
    saved = config.get("modules_to_save") or []
    if not isinstance(saved, list) or not all(isinstance(name, str) and name for name in saved):
        raise ToolkitError(f"`{folder / CONFIG}` has no valid `modules_to_save`: {brief(saved)}", hint=AGAIN)


def _positive(value: Any) -> bool:
    return type(value) is int and value > 0


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST


def _at_the_end(expression: str) -> str:
    return rf"(.*\.)?({expression})$"


def pattern(patterns: Any, module: str, default: Any) -> Any:
    """Return the value of the first pattern that matches the end of a module's name (PEFT's get_pattern_key)."""
    found = (value for expression, value in (patterns or {}).items() if re.match(_at_the_end(expression), module))
    return next(found, default)
