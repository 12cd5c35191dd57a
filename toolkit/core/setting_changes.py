"""Which settings changed since something was recorded, perhaps by a version of the toolkit that had fewer of them.

A new setting's default keeps what was done before, so that a record without it was made with that default.
"""

from collections.abc import Mapping
from typing import Any

from pydantic import TypeAdapter

from toolkit.core.aliases import present_key
from toolkit.core.config import SECTIONS

NEVER = object()  # equals no setting


def is_known(key: str) -> bool:
    """Say whether there is a setting `section.key` today."""
    return default_of(key) is not NEVER


def present_names(recorded: Mapping[str, Any]) -> dict[str, Any]:
    """Return recorded settings (`section.key` → value) under the names that they have now."""
    return {present_key(key): value for key, value in recorded.items()}


def changed_settings(recorded: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """List the settings (`section.key`) whose values differ; one that the record lacks had its default.

    A setting that is gone counts as changed: nobody knows what its default was.
    """
    then = present_names(recorded)
    return [
        key
        for key in sorted({*then, *now})
        if not _unchanged(then.get(key, NEVER), now.get(key, NEVER), default_of(key))
    ]


def default_of(key: str) -> Any:
    """Return the default of a setting `section.key` as JSON has it; for an unknown one what equals nothing."""
    section, _, name = key.partition(".")
    field = SECTIONS[section].model_fields.get(name) if section in SECTIONS else None
    if field is None or field.is_required():
        return NEVER
    return TypeAdapter(Any).dump_python(field.get_default(call_default_factory=True), mode="json")


def _unchanged(then: Any, now: Any, default: Any) -> bool:
    if then is NEVER:
        return bool(now == default)
    # A table may get new entries too. One that names what the default does not is the user's: it must be the same.
    if isinstance(then, dict) and isinstance(now, dict) and isinstance(default, dict) and then.keys() <= default.keys():
        keys = {*then, *now}
        return all(_unchanged(then.get(key, NEVER), now.get(key, NEVER), default.get(key, NEVER)) for key in keys)
    return bool(then == now)
