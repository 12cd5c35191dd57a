"""Packed rows against single records, and Unsloth against plain PEFT, on the GPU: loss and gradient of one step."""

import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.support.gpu_runs import has_unsloth, offline, settings_in
from tests.support.places import REPOSITORY
from toolkit.model.base import Base

pytestmark = pytest.mark.gpu


@pytest.fixture(scope="module")
def probed(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Probe a backend once, and return its tensors."""
    found: dict[tuple[str, str], dict[str, torch.Tensor]] = {}

    def probe(backend: str, way: str = "4-bit") -> dict[str, torch.Tensor]:
        if backend == "unsloth" and not has_unsloth():
            pytest.skip("Unsloth is not installed")
        if (backend, way) not in found:
            place = tmp_path_factory.mktemp(backend)
            settings, _ = settings_in(place, backend=backend)
            (place / "config.json").write_text(settings.model_dump_json(by_alias=True))
            script = REPOSITORY / "tests/support/gpu_probe.py"
            out = place / "out.safetensors"
            places = [place / "config.json", small_base.folder, out]
            done = subprocess.run(
                [sys.executable, script, backend, way, *places],
                capture_output=True,
                text=True,
                timeout=300,
                env=offline(),
            )
            assert done.returncode == 0, done.stderr[-4000:]
            found[backend, way] = load_file(out)
        return found[backend, way]

    return probe


def gradient(tensors: dict[str, torch.Tensor], label: str) -> torch.Tensor:
    """All gradients of one layout, in one vector."""
    names = sorted(name for name in tensors if name.startswith(label + " base_model"))
    assert len(names) == 4 * 7 * 2  # layers, projections, LoRA matrices
    return torch.cat([tensors[name].reshape(-1) for name in names]).double()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """The norm of the difference over the norm of the first."""
    return float((one - other).norm() / one.norm())


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_packed_and_single_records_have_the_same_losses_and_gradient(probed: Any, backend: str) -> None:
    tensors = probed(backend)
    assert tensors["packed losses"].item() == pytest.approx(tensors["single losses"].sum().item(), rel=3e-3)
    for alone, packed in zip(tensors["single losses"].tolist(), tensors["in the row"].tolist(), strict=True):
        assert packed == pytest.approx(alone, rel=1e-2)
    far = distance(gradient(tensors, "single"), gradient(tensors, "packed"))
    print(f"{backend}: gradient packed against single {far:.2e}")
    assert far < 0.03


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_dequantizing_once_changes_nothing(probed: Any, backend: str) -> None:
    """Against 4-bit weights, dequantized in every pass; attention's backward pass is not repeatable."""
    each, once = probed(backend), probed(backend, "dequantized")
    assert torch.equal(once["packed losses"], each["packed losses"])
    far = distance(gradient(each, "packed"), gradient(once, "packed"))
    print(f"{backend}: dequantized once against in every pass: the same loss, gradient {far:.2e}")
    assert far < 1e-3


def test_unsloths_first_step_is_plain_pefts(probed: Any) -> None:
    ours, theirs = probed("unsloth"), probed("peft")
    assert ours["packed losses"].item() == pytest.approx(theirs["packed losses"].item(), rel=5e-3)
    far = distance(gradient(theirs, "packed"), gradient(ours, "packed"))
    print(
        f"Unsloth against PEFT: loss {ours['packed losses'].item():.5f}, {theirs['packed losses'].item():.5f}, "
        f"gradient {far:.2e}"
    )
    assert far < 0.08
