"""Looking ahead: in order, really ahead, and never more in memory than the largest tensor alone."""

import threading
import weakref
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.export import tensors


def some(sizes: list[int]) -> list[Any]:
    layouts = [SimpleNamespace(heads=0, offset=0, stored_shape=(size,), copied=False) for size in sizes]
    return [SimpleNamespace(shape=each.stored_shape, layout=each, index=index) for index, each in enumerate(layouts)]


@settings(max_examples=tries(60), derandomize=True)
@given(st.lists(st.integers(1, 100), max_size=12))
def test_order_and_memory(sizes: list[int]) -> None:
    lock, made, most = threading.Lock(), [], 0

    class Values(np.ndarray):
        pass

    def prepare(tensor: Any) -> Any:
        nonlocal most
        values = np.full(tensor.shape, tensor.index, np.float32).view(Values)
        with lock:
            made.append(weakref.ref(values))
            most = max(most, sum(alive.size for alive in (reference() for reference in made) if alive is not None))
        return values

    seen = []
    pairs: Iterable[tuple[Any, Any]] = tensors.ahead(some(sizes), prepare)
    for tensor, values in pairs:
        assert (values == tensor.index).all()
        seen.append(tensor.index)
        del values
    assert seen == list(range(len(sizes)))
    assert most <= max(sizes, default=0)


def test_the_next_is_prepared_while_the_present_is_used() -> None:
    begun = [threading.Event() for _ in range(4)]

    def prepare(tensor: Any) -> Any:
        begun[tensor.index].set()
        return np.zeros(tensor.shape, np.float32)

    pairs: Iterable[tuple[Any, Any]] = tensors.ahead(some([100, 10, 10, 1]), prepare)
    for tensor, values in pairs:
        if tensor.index == 1:
            assert begun[2].wait(5) and begun[3].wait(5)
        if tensor.index == 0:
            assert not begun[1].wait(0.05)  # the largest stands alone
        del values


def test_a_failure_reaches_the_caller_and_ends_the_thread() -> None:
    before = threading.active_count()

    def prepare(tensor: Any) -> Any:
        if tensor.index == 2:
            raise ValueError("no")
        return np.zeros(tensor.shape, np.float32)

    with pytest.raises(ValueError, match="no"):
        for _, values in tensors.ahead(some([5, 1, 1, 1]), prepare):
            del values
    with pytest.raises(KeyError):
        for _ in tensors.ahead(some([5, 1, 1, 1]), prepare):
            raise KeyError
    assert threading.active_count() == before
