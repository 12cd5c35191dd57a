"""Frozen weights in FP8 on the GPU: the kernels to the bit, products of an 8B model's sizes, gradients and learning."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gpu_runs import has_unsloth, log_of, probing, settings_in
from toolkit.core.errors import ToolkitError
from toolkit.model.base import Base
from toolkit.model.precision import FP8_CAPABILITY
from toolkit.train import launch
from toolkit.train.fp8 import proof, rows, weights

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        torch.cuda.is_available() and torch.cuda.get_device_capability() < FP8_CAPABILITY, reason="no FP8 on this GPU"
    ),
]
LLAMA_8B = [(4096, 4096), (4096, 1024), (4096, 14336), (14336, 4096)]


def same(found: rows.Fp8Rows, wanted: rows.Fp8Rows) -> bool:
    """Whether bytes and scales are equal; in rows that are not finite only that they are not."""
    finite = wanted.scales[:, 0].isfinite()
    both = [one.values.view(torch.uint8)[finite] for one in (found, wanted)]
    return bool(
        torch.equal(*both)
        and torch.equal(found.scales[finite], wanted.scales[finite])
        and torch.equal(found.scales[:, 0].isfinite(), finite)
    )


@pytest.mark.parametrize("count", [1, 13, 300])
@pytest.mark.parametrize("widths", [[16], [576], [4096], [14336], [4096, 1024, 1024], [14336, 14336], [53248]])
def test_the_kernel_rounds_as_torch_does(widths: list[int], count: int) -> None:
    torch.manual_seed(0)
    parts = [torch.randn(count, width + 8, device="cuda", dtype=torch.bfloat16)[:, :width] for width in widths]
    for part in parts:
        part[0] = 0
    if count > 4:
        parts[0][1, 2], parts[-1][2, 3], parts[0][3] = float("nan"), float("inf"), parts[0][3] * 1e-25
    assert same(rows.quantize_rows(*parts), rows._by_torch(torch.cat(parts, dim=1)))


@pytest.mark.parametrize("width", [16, 1536, 14336])
def test_swiglus_kernels_round_what_they_write(width: int) -> None:
    torch.manual_seed(0)
    gate, up, gradient = (torch.randn(70, width, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    hidden, quantized = rows.swiglu(gate, up)
    again, to_gate, to_up, both = rows.swiglu_backward(gradient, gate, up)
    assert same(quantized, rows._by_torch(hidden)) and same(both, rows._by_torch(torch.cat([to_gate, to_up], dim=1)))
    exact = [one.float().requires_grad_() for one in (gate, up)]
    wanted = torch.nn.functional.silu(exact[0]) * exact[1]
    wanted.backward(gradient.float())
    for found, right in ((hidden, wanted), (again, wanted), (to_gate, exact[0].grad), (to_up, exact[1].grad)):
        assert right is not None and proof.distance(found, right) < 5e-3


@pytest.mark.parametrize("size", LLAMA_8B)
@pytest.mark.parametrize("tokens", [2688, 16384])
def test_products_of_an_8b_models_sizes(size: tuple[int, int], tokens: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(size[1], size[0], device="cuda", dtype=torch.bfloat16) * 0.02
    group = weights.make_group([weight])
    for name, x, right, wanted in (
        ("forward", torch.randn(tokens, size[0], device="cuda").bfloat16(), group.members[0].rows, weight.t()),
        ("backward", torch.randn(tokens, size[1], device="cuda").bfloat16(), group.columns, weight),
    ):
        far = proof.distance(weights.product(rows.quantize_rows(x), right), x @ wanted)
        print(f"{name} {size} {tokens} tokens: {far:.2%} from bf16")
        assert 0.01 < far < proof.TOLERANCE


def test_this_gpu_is_proven_for_an_8b_model() -> None:
    assert proof.prove(LLAMA_8B) == ""


def probed(backend: str, way: str, base: Base, place: Path) -> dict[str, torch.Tensor]:
    """Loss and gradients of one step, by a process of its own."""
    with probing(place / way, base, backend, way) as started:
        return started.step().tensors


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_the_gradient_of_each_layer_points_the_same_way(backend: str, small_base: Base, tmp_path: Path) -> None:
    if backend == "unsloth" and not has_unsloth():
        pytest.skip("Unsloth is not installed")
    exact, found = (probed(backend, way, small_base, tmp_path) for way in ("dequantized", "fp8"))
    assert found["packed losses"].item() == pytest.approx(exact["packed losses"].item(), rel=5e-3)
    assert not torch.equal(found["packed losses"], exact["packed losses"])
    cosines = {
        name: float(torch.cosine_similarity(exact[name].flatten(), found[name].flatten(), dim=0))
        for name in exact
        if "lora_" in name
    }
    assert len(cosines) == 4 * 7 * 2
    print(f"{backend}: cosine {min(cosines.values()):.4f} to {max(cosines.values()):.4f}")
    assert min(cosines.values()) > 0.97


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_a_run_in_fp8_learns_what_one_in_bf16_does(backend: str, small_base: Base, tmp_path: Path) -> None:
    if backend == "unsloth" and not has_unsloth():
        pytest.skip("Unsloth is not installed")
    found: dict[str, dict[str, Any]] = {}
    logs = {}
    for way in ("bf16", "fp8"):
        settings, folder = settings_in(tmp_path / way, backend=backend, base_compute=way, max_steps=40)
        found[way] = launch.run_training(settings, folder, small_base).figures
        logs[way] = log_of(folder.train_log)
    assert found["fp8"]["base_compute"] == "fp8" and found["bf16"]["base_compute"] == "bf16"
    assert found["fp8"]["answers"] is not None  # generation works with such weights too
    for one, other in zip(logs["bf16"], logs["fp8"], strict=True):
        assert one["tokens"] == other["tokens"] and other["loss"] == pytest.approx(one["loss"], rel=0.03)
    before, after = (found[way]["held_out_loss_after"] for way in ("bf16", "fp8"))
    print(f"{backend}: held-out loss {before:.4f} in bf16, {after:.4f} in FP8")
    assert after == pytest.approx(before, abs=0.1)  # 0.044 was seen: random weights, a learning rate of 1e-3
    assert found["fp8"]["held_out_loss_after"] < found["fp8"]["held_out_loss_before"]


def test_a_proof_that_fails_is_said_and_refused(
    small_base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from toolkit.train import base_compute
    from toolkit.train.backend_choice import choose_backend

    monkeypatch.setattr(proof, "TOLERANCE", 1e-3)
    settings, _ = settings_in(tmp_path, backend="peft")
    from toolkit.model.model_config import model_config

    shape, backend = model_config(small_base.folder), choose_backend("peft")
    monkeypatch.setattr(base_compute, "AUTO", "fp8")
    assert not base_compute.uses_fp8(settings, backend, "bf16", shape)
    said = " ".join(capsys.readouterr().err.split())
    assert "frozen weights: bf16, because the forward product of" in said and "from bf16's, more than" in said
    demanded, _ = settings_in(tmp_path / "demanded", backend="peft", base_compute="fp8")
    with pytest.raises(ToolkitError, match=r"train.base_compute is fp8, but the forward product"):
        base_compute.uses_fp8(demanded, backend, "bf16", shape)
