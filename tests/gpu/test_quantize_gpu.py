"""The Triton kernels on a real card: ggml's bytes, whatever the weights, in pieces and from several threads."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from toolkit.export import gpu
from toolkit.export.gpu import hard

pytestmark = pytest.mark.gpu
KINDS = ["Q4_K", "Q5_K", "Q6_K", "Q8_0"]


@pytest.fixture(autouse=True)
def _card() -> None:
    reason = gpu.available()
    if reason:
        pytest.skip(reason)


def ordinary(rows: int, columns: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_gives_the_bytes_of_ggml(kind: str, weighted: bool, bf16: bool) -> None:
    assert gpu.trusted(Type[kind], weighted, bf16) is None
    many = np.concatenate([hard.hard_rows(seed) for seed in range(9)] + [hard.hostile_rows(seed) for seed in range(9)])
    for rows in (ordinary(1024, 4096, 1), ordinary(3, 14336, 2), ordinary(1, 256, 3), many):
        importance = None
        if weighted:
            importance = np.resize(hard.importance_row(), rows.shape[1]).astype(np.float32)
        values = rows
        if bf16:
            rows = hard.on_bfloat16_grid(rows)
            values = (rows.view(np.uint32) >> 16).astype(np.uint16)
        found = gpu.quantize(Type[kind], values, importance)
        assert np.array_equal(found, gpu.reference(Type[kind], rows, importance))


@pytest.mark.parametrize("kind", KINDS)
def test_pieces_and_threads_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ordinary(256, 4096, 5)
    rows[::50, 3] = np.inf  # blocks that ggml does again
    expected = gpu.reference(Type[kind], rows, None)
    monkeypatch.setattr(gpu, "PIECE", 7 * 4096)
    assert np.array_equal(gpu.quantize(Type[kind], rows), expected)
    with ThreadPoolExecutor(8) as pool:
        parts = list(pool.map(lambda part: gpu.quantize(Type[kind], part), np.array_split(rows, 32)))
    assert np.array_equal(np.concatenate(parts), expected)


def test_rows_that_lie_on_the_card_or_at_an_odd_address() -> None:
    import torch

    rows = ordinary(64, 512, 6)
    expected = gpu.reference(Type.Q4_K, rows, None)
    assert np.array_equal(gpu.quantize(Type.Q4_K, torch.from_numpy(rows).cuda()), expected)
    room = torch.empty(rows.size + 1, device="cuda")
    room[1:] = torch.from_numpy(rows).reshape(-1).cuda()
    assert np.array_equal(gpu.quantize(Type.Q4_K, room[1:].reshape(rows.shape)), expected)
