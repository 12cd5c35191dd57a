"""How a model was trained, in words for the screen, the page and the model card."""

from collections.abc import Mapping
from typing import Any


def trained_with(figures: Mapping[str, Any]) -> str:
    """Name library, device and precision, and say where the frozen weights were computed in FP8; empty if unknown."""
    parts = [str(figures[key]) for key in ("backend", "device", "precision") if figures.get(key)]
    if figures.get("base_compute") == "fp8":
        parts.append("frozen weights in FP8")
    return ", ".join(parts)


def skipped_steps(figures: Mapping[str, Any]) -> str:
    """Say how many steps changed nothing because of f16; empty if none did, or it is not known."""
    count, steps = figures.get("skipped_steps"), figures.get("steps")
    if not isinstance(count, int) or not isinstance(steps, int) or not count:
        return ""
    return f"{count:,} of {steps:,} steps changed nothing: a gradient overflowed in f16, its scale was halved"
