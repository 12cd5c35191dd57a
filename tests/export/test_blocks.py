"""Blocks of rows put together are the whole tensor: whatever its dtype, its layout and what the adapter did to it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.support import families as small
from tests.support import models
from toolkit import kernels
from toolkit.export import export, plan, tensors
from toolkit.export.planned_tensor import PlannedTensor, streams, working_size
from toolkit.model import families


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
@pytest.mark.parametrize("block", [1, 5_000, 1 << 19])
def test_blocks_are_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype, block: int) -> None:
    monkeypatch.setattr(tensors, "BLOCK", block)
    base = models.save_model(tmp_path / "base", dtype=dtype)
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "v_proj", "down_proj"])
    planned = plan(base, adapter, ["F32"])
    with ThreadPoolExecutor(2) as pool:
        for tensor in planned.tensors:
            if tensor.stored is None:
                continue
            expected = families.to_ggml_layout(tensors.trained(tensor, pool), tensor.layout)
            source = tensors.source(tensor, None, pool)
            parts = [
                source.read(start, min(start + source.step, source.rows))
                for start in range(0, source.rows, source.step)
            ]
            if streams(tensor):
                kept = dtype == torch.bfloat16 and tensor.change is None
                assert {part.dtype for part in parts} == {np.dtype(np.uint16 if kept else np.float32)}
                assert not source.whole and working_size(tensor) < 4 * expected.size
            found = np.concatenate([kernels.widened(part) for part in parts]).reshape(expected.shape)
            if tensor.change is None:
                assert np.array_equal(found, expected), tensor.name
            else:  # B @ A in other blocks may round otherwise in the last bit
                np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=tensor.name)
    assert sum(map(streams, planned.tensors)) > 8


@pytest.mark.parametrize("settings", [{}, {"use_dora": True}, None], ids=["LoRA", "DoRA", "base alone"])
@pytest.mark.parametrize("block", [5_000, 1 << 19])
def test_parts_of_a_fused_matrix_in_blocks_are_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any] | None, block: int
) -> None:
    """Granite 4.0's gate and up: the second half starts within the adapter's B too."""
    monkeypatch.setattr(tensors, "BLOCK", block)
    base = small.save(tmp_path / "base", "granite4", shared_intermediate_size=160)
    adapter = None
    if settings is not None:
        adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["input_linear"], **settings)
    planned = plan(base, adapter, ["F32"])
    places: dict[str, list[PlannedTensor]] = {}
    for tensor in planned.tensors:
        places.setdefault(tensor.layout.source, []).append(tensor)
    fused = {name: parts for name, parts in places.items() if len(parts) > 1}
    assert {tuple(part.name.split(".")[2] for part in parts) for parts in fused.values()} == {("ffn_gate", "ffn_up")}
    assert len(fused) == 2
    with ThreadPoolExecutor(2) as pool:
        for name, parts in fused.items():
            opened = [tensors.source(part, None, pool) for part in parts]
            found = [
                kernels.widened(each.read(start, min(start + each.step, each.rows)))
                for each in opened
                for start in range(0, each.rows, each.step)
            ]
            expected = tensors.trained(parts[0], pool)
            assert expected.shape == (320, 256) and [each.rows for each in opened] == [160, 160]
            np.testing.assert_allclose(np.concatenate(found), expected, rtol=1e-5, atol=1e-7, err_msg=name)


@pytest.mark.slow
def test_a_fused_matrix_counts_as_one_module(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = small.save(tmp_path / "base", "granite4")
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["input_linear", "o_proj"])
    weights = load_file(adapter / "adapter_model.safetensors")
    kept = {name: 0 * value if "input_linear.lora_B" in name else value for name, value in weights.items()}
    save_file(kept, adapter / "adapter_model.safetensors")
    export(base, adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert "2 of 4 LoRA products are all zeros" in capsys.readouterr().err
