"""The Triton kernels on a real GPU: ggml's bytes, whatever the weights, in pieces and from several threads.

Four variants are compiled, some 25 seconds; benchmarks/quantize_gpu.py proves all sixteen.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.kernels import gpu
from toolkit.kernels.gpu import lanes, test_vectors

pytestmark = pytest.mark.gpu
VARIANTS = [("Q4_K", False, False), ("Q6_K", False, False), ("Q8_0", False, False), ("Q6_K", True, True)]


@pytest.fixture(autouse=True)
def _gpu() -> None:
    reason = gpu.available()
    if reason:
        pytest.skip(reason)


def ordinary(rows: int, columns: int, seed: int) -> np.ndarray:
    return (np.random.default_rng(seed).standard_t(5, (rows, columns)) * 0.02).astype(np.float32)


@pytest.mark.parametrize(("kind", "weighted", "bf16"), VARIANTS)
def test_gives_the_bytes_of_ggml(kind: str, weighted: bool, bf16: bool) -> None:
    assert gpu.self_test(Type[kind], weighted, bf16) is None
    many = np.concatenate(
        [test_vectors.hard_rows(seed) for seed in range(9)] + [test_vectors.hostile_rows(seed) for seed in range(9)]
    )
    for rows in (ordinary(1024, 4096, 1), ordinary(3, 14336, 2), ordinary(1, 256, 3), many):
        importance = None
        if weighted:
            importance = np.resize(test_vectors.importance_row(), rows.shape[1]).astype(np.float32)
        values = rows
        if bf16:
            rows = test_vectors.on_bfloat16_grid(rows)
            values = kernels.to_bf16(rows)
        found = gpu.quantize(Type[kind], values, importance)
        assert np.array_equal(found, gpu.reference(Type[kind], rows, importance))


@pytest.mark.parametrize("kind", ["Q4_K", "Q8_0"])
def test_pieces_and_threads_change_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = ordinary(256, 4096, 5)
    rows[::50, 3] = np.inf  # blocks that ggml does again
    expected = gpu.reference(Type[kind], rows, None)
    monkeypatch.setattr(lanes, "PIECE", 7 * 4096)
    assert np.array_equal(gpu.quantize(Type[kind], rows), expected)
    with ThreadPoolExecutor(16) as pool:
        for _ in range(5):
            parts = list(pool.map(lambda part: gpu.quantize(Type[kind], part), np.array_split(rows, 32)))
            assert np.array_equal(np.concatenate(parts), expected)
    assert lanes._idle and all(lane.sent.is_pinned() and lane.written.is_pinned() for lane in lanes._idle)


def test_rows_that_lie_on_the_gpu_or_at_an_odd_address() -> None:
    import torch

    rows = ordinary(64, 512, 6)
    expected = gpu.reference(Type.Q4_K, rows, None)
    assert np.array_equal(gpu.quantize(Type.Q4_K, torch.from_numpy(rows).cuda()), expected)
    room = torch.empty(rows.size + 1, device="cuda")
    room[1:] = torch.from_numpy(rows).reshape(-1).cuda()
    assert np.array_equal(gpu.quantize(Type.Q4_K, room[1:].reshape(rows.shape)), expected)


def test_no_memory_on_the_gpu_is_an_error_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    rows = ordinary(64, 512, 7)
    expected = gpu.quantize(Type.Q8_0, rows)
    free = torch.cuda.mem_get_info()[0]
    with monkeypatch.context() as patch:
        much = lambda lane, rows: torch.empty(4 * free, dtype=torch.uint8, device="cuda")  # noqa: E731
        patch.setattr(lanes.Lane, "to_device", much)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            gpu.quantize(Type.Q8_0, rows)
    assert np.array_equal(gpu.quantize(Type.Q8_0, rows), expected)


def test_a_whole_export_on_the_gpu_is_the_same_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    from tests.support import models
    from toolkit.export import export, gpu_quantizer

    base = models.save_model(
        tmp_path / "base", num_hidden_layers=1, hidden_size=1024, intermediate_size=2048, vocab_size=4096
    )
    names = ("Q4_K_M", "Q8_0")
    written, routines = {}, {}
    for folder, seconds in (("cpu", 1e9), ("gpu", 0.0)):
        monkeypatch.setattr(gpu_quantizer, "SECONDS", seconds)
        monkeypatch.setattr(
            gpu_quantizer, "in_background", gpu_quantizer.prove_types
        )  # at once: the whole export is the GPU's
        targets = {name: tmp_path / folder / f"{name}.gguf" for name in names}
        (tmp_path / folder).mkdir()
        outcome = export(base, None, targets, models.TEMPLATE, "small")
        written[folder] = {name: path.read_bytes() for name, path in targets.items()}
        routines[folder] = {kind: by for name in names for kind, by in outcome.figures[name]["quantized_by"].items()}
    assert written["gpu"] == written["cpu"]
    assert "CUDA" not in str(routines["cpu"])
    for kind in ("Q4_K", "Q6_K", "Q8_0"):
        assert f"CUDA ({gpu.gpu_name()})" in routines["gpu"][kind], routines["gpu"]
