"""Staging memory: right under many threads, reused, never lent again after a failure; ggml plays the kernels."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.kernels import gpu
from toolkit.kernels.gpu import lanes, test_vectors

launch = pytest.importorskip("toolkit.kernels.gpu.launch", reason="Triton is not installed")


@pytest.fixture(autouse=True)
def ggml_as_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def quantize_rows(kind: Type, rows: torch.Tensor, importance: torch.Tensor | None) -> tuple[Any, Any]:
        weights = None if importance is None else importance.numpy()
        blocks = gpu.reference(kind, rows.float().numpy(), weights).reshape(-1, GGML_QUANT_SIZES[kind][1])
        flags = np.arange(len(blocks)) % 5 == 2  # these are given back to ggml, whatever stands there
        blocks[flags] = 77
        return torch.from_numpy(blocks), torch.from_numpy(flags.astype(np.int8))

    monkeypatch.setattr(launch, "quantize_rows", quantize_rows)
    monkeypatch.setattr(lanes, "_idle", [])
    yield


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("kind", [Type.Q4_K, Type.Q8_0])
def test_threads_and_pieces_change_nothing(kind: Type, bf16: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.concatenate([test_vectors.ordinary_rows(120), test_vectors.hard_rows()])
    values: np.ndarray = rows
    if bf16:
        rows = test_vectors.on_bfloat16_grid(rows)
        values = kernels.to_bf16(rows)
    monkeypatch.setattr(lanes, "PIECE", 3 * test_vectors.COLUMNS)
    for importance in (None, test_vectors.importance_row()):
        expected = gpu.reference(kind, rows, importance)
        assert np.array_equal(gpu.quantize(kind, values, importance, "cpu"), expected)
        with ThreadPoolExecutor(16) as pool:
            parts = pool.map(lambda part: gpu.quantize(kind, part, importance, "cpu"), np.array_split(values, 40))  # noqa: B023
            assert np.array_equal(np.concatenate(list(parts)), expected)
    assert 1 <= len(lanes._idle) <= lanes.COUNT


def test_a_row_longer_than_a_piece_gets_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "PIECE", 256)
    rows = test_vectors.ordinary_rows(4).reshape(1, -1)
    assert np.array_equal(gpu.quantize(Type.Q8_0, rows, None, "cpu"), gpu.reference(Type.Q8_0, rows, None))


@pytest.mark.slow
def test_no_more_lanes_than_there_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[int] = []

    def locked(size: int) -> torch.Tensor:
        made.append(size)
        return torch.empty(8, dtype=torch.uint8)

    monkeypatch.setattr(lanes, "locked", locked)
    full = threading.Barrier(lanes.COUNT + 1)
    late = threading.Event()

    def hold() -> None:
        with lanes.borrowed("cpu"):
            full.wait(30)

    def last() -> None:
        with lanes.borrowed("cpu"):
            late.set()

    threads = [threading.Thread(target=hold) for _ in range(lanes.COUNT)]
    for thread in threads:
        thread.start()
    while len(made) < 3 * lanes.COUNT:
        threads[0].join(0.01)
    more = threading.Thread(target=last)
    more.start()
    assert not late.wait(0.2)
    full.wait(30)
    for thread in (*threads, more):
        thread.join()
    assert late.is_set() and len(made) == 3 * lanes.COUNT == 3 * len(lanes._idle)


def test_a_lane_that_failed_is_not_lent_again() -> None:
    with pytest.raises(ZeroDivisionError), lanes.borrowed("cpu") as first:
        raise ZeroDivisionError
    with lanes.borrowed("cpu") as second:
        assert second is not first
    with lanes.borrowed("cpu") as third:
        assert third is second


def test_memory_that_cannot_be_locked_is_ordinary(monkeypatch: pytest.MonkeyPatch) -> None:
    real = torch.empty
    asked = []

    def empty(size: int, **options: Any) -> torch.Tensor:
        asked.append(options.pop("pin_memory", False))
        if asked[-1]:
            raise RuntimeError("CUDA error: out of memory")
        return real(size, **options)

    monkeypatch.setattr(torch, "empty", empty)
    assert len(lanes.locked(100)) == 100 and asked == [True, False]
