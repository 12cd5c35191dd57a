"""The stages in order, their records, and the settings on which the result of each depends."""

import itertools
from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Stage

if TYPE_CHECKING:
    from toolkit.core.config import Config

# The stages in their order, each with its help on the command line and an example; the rest of its record, which takes
# longer to load, is in `toolkit/NAME/stage.py`.
STAGES = {
    "prepare": ("Read, clean, de-duplicate and split the data.", "toolkit prepare --set data.source=questions.csv"),
    "train": ("Fine-tune the base model with LoRA.", "toolkit train --set train.max_steps=100"),
    "export": ("Merge, and write all GGUF quantizations.", "toolkit export --adapter DIR --base DIR --output DIR"),
    "validate": ("Compare each GGUF with the trained model.", "toolkit validate --set validate.rows=20"),
    "register": ("Create the model in Ollama, and check it there.", "toolkit register --set ollama.name=medassist"),
}
# Beside the chain: `run` does not perform them, and nothing waits for them.
BESIDE = {
    "evaluate": (
        "Ask base, trained model and GGUF files the same questions, and compare.",
        "toolkit evaluate --set evaluate.questions=20",
    ),
}


def stage(name: str) -> Stage:
    """Return a stage's record."""
    found: Stage = import_module(f"toolkit.{name}.stage").STAGE
    return found


def records(names: Iterable[str]) -> list[Stage]:
    """Return the records of several stages, in the order of their names."""
    return [stage(name) for name in names]


def settings_of(found: Stage, config: "Config") -> dict[str, Any]:
    """Flatten the settings that decide a stage's result into `section.key` → value."""
    flat: dict[str, Any] = {}
    for key in found.settings:
        section, _, name = key.partition(".")
        values = config.section(section)
        flat.update({f"{section}.{item}": values[item] for item in ([name] if name else values)})
    return deciding(found, flat)


def deciding(found: Stage, settings: dict[str, Any]) -> dict[str, Any]:
    """Return those of some settings (`section.key` → value) that decide a stage's result, or that are gone today."""
    from toolkit.core.setting_changes import is_known

    named = {*found.settings}
    return {
        key: value
        for key, value in settings.items()
        if not is_known(key) or (key not in found.idle and named & {key, key.partition(".")[0]})
    }


def chain(name: str) -> list[str]:
    """Return the stages that come before one, in order; before one beside the chain, those up to what it needs."""
    if name in STAGES:
        return [*itertools.takewhile(lambda other: other != name, STAGES)]
    last = max(map([*STAGES].index, stage(name).needs), default=-1)
    return [*STAGES][: last + 1]
