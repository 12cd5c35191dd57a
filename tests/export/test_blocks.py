"""Blocks of rows put together are the whole tensor: whatever its dtype, its layout and what the adapter did to it."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import models
from toolkit import kernels
from toolkit.export import plan, tensors
from toolkit.export.planning import streams, working_size
from toolkit.model import families


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
