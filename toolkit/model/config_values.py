"""Single values of a config.json or GGUF header, checked: each ValueError names the key and its value."""

from collections.abc import Mapping
from typing import Any

MOST = 2**31 - 1  # GGUF states counts as uint32, llama.cpp and torch compute with int32
LARGEST, SMALLEST = 3.4e38, 1.2e-38  # of float32, in which GGUF states numbers; smaller ones lose digits
Values = Mapping[str, Any]


def brief(value: object) -> str:
    """Return a value as a message shows it: 60 characters at most, whatever its size."""
    if isinstance(value, list | dict | str) and len(value) > 1000:
        return f"a {type(value).__name__} of {len(value):,} items"
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def count(values: Values, key: str, default: int | None = None, *, most: int = MOST) -> int:
    """Return an integer from 1 to `most`; raises ValueError if it is invalid, or absent without a default."""
    value = values.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise ValueError(f"`{key}` is missing")
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"no valid `{key}`: {brief(value)}, a whole number from 1 to {most} is needed")
    return value


def real(values: Values, key: str, default: float | None = None, *, most: float = LARGEST) -> float:
    """Return a positive number that float32 holds; raises ValueError if it is invalid, or absent without a default."""
    value = values.get(key)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"`{key}` is missing")
    # Compared before it is converted: JSON's whole numbers may be larger than any float.
    if type(value) not in (int, float) or not SMALLEST <= value <= most:
        raise ValueError(f"no valid `{key}`: {brief(value)}, a number above 0 and up to {most:g} is needed")
    return float(value)


def flag(values: Values, key: str, default: bool = False) -> bool:
    """Return true or false; raises ValueError for anything else."""
    value = values.get(key)
    if value is None:
        return default
    if type(value) is not bool:
        raise ValueError(f"no valid `{key}`: {brief(value)}, true or false is needed")
    return value


def expect(values: Values, key: str, wanted: Any) -> None:
    """Raise ValueError if the value is not the only one that llama.cpp supports."""
    value = values.get(key)
    if value is not None and value != wanted:
        raise ValueError(f"`{key}` is {brief(value)}, but llama.cpp supports only {brief(wanted)}")
