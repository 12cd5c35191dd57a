"""How much `make fast` tries: 10 examples of each property, and the first cases of what takes long; `make test` all."""

from collections.abc import Iterable
from typing import Any

import pytest
from hypothesis import settings

FEW = 10
settings.register_profile("full", deadline=None)
settings.register_profile("fast", deadline=None, max_examples=FEW, derandomize=True)


def tries(full: int) -> int:
    """Return the number for `@settings`, whose number goes before the profile's."""
    return min(full, FEW) if settings.get_current_profile_name() == "fast" else full


def first_fast(cases: Iterable[Any], count: int = 1) -> list[Any]:
    """Return cases for `parametrize`, of which all but the first are slow: each takes long, and does the same."""
    every = list(cases)
    return [*every[:count], *(pytest.param(*_values(case), marks=pytest.mark.slow) for case in every[count:])]


def _values(case: Any) -> tuple[Any, ...]:
    return case if isinstance(case, tuple) else (case,)
