"""Packed rows against single records, and Unsloth against plain PEFT, on the GPU: loss and gradient of one step."""

from collections.abc import Callable

import pytest
import torch

from tests.support.gpu_runs import Step, distance, has_unsloth, probing
from toolkit.model.base import Base

pytestmark = pytest.mark.gpu
Probed = Callable[..., Step]


@pytest.fixture(scope="module")
def probed(small_base: Base, tmp_path_factory: pytest.TempPathFactory) -> Probed:
    """Probe a backend once, and return its step."""
    found: dict[tuple[str, str], Step] = {}

    def probe(backend: str, way: str = "4-bit") -> Step:
        if backend == "unsloth" and not has_unsloth():
            pytest.skip("Unsloth is not installed")
        if (backend, way) not in found:
            with probing(tmp_path_factory.mktemp(backend), small_base, backend, way) as started:
                found[backend, way] = step = started.step()
            assert not step.refused
            assert len(step.trained()) == 4 * 7 * 2  # layers, projections, LoRA matrices
        return found[backend, way]

    return probe


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_packed_and_single_records_have_the_same_losses_and_gradient(probed: Probed, backend: str) -> None:
    step = probed(backend)
    tensors = step.tensors
    assert step.loss == pytest.approx(tensors["single losses"].sum().item(), rel=3e-3)
    for alone, packed in zip(tensors["single losses"].tolist(), tensors["in the row"].tolist(), strict=True):
        assert packed == pytest.approx(alone, rel=1e-2)
    far = distance(step.gradient("single"), step.gradient("packed"))
    print(f"{backend}: gradient packed against single {far:.2e}")
    assert far < 0.03


@pytest.mark.parametrize("backend", ["peft", "unsloth"])
def test_dequantizing_once_changes_nothing(probed: Probed, backend: str) -> None:
    """Against 4-bit weights, dequantized in every pass; attention's backward pass is not repeatable."""
    each, once = probed(backend), probed(backend, "dequantized")
    assert torch.equal(once.tensors["packed losses"], each.tensors["packed losses"])
    far = distance(each.gradient("packed"), once.gradient("packed"))
    print(f"{backend}: dequantized once against in every pass: the same loss, gradient {far:.2e}")
    assert far < 1e-3


def test_unsloths_first_step_is_plain_pefts(probed: Probed) -> None:
    ours, theirs = probed("unsloth"), probed("peft")
    assert ours.loss == pytest.approx(theirs.loss, rel=5e-3)
    far = distance(theirs.gradient("packed"), ours.gradient("packed"))
    print(f"Unsloth against PEFT: loss {ours.loss:.5f}, {theirs.loss:.5f}, gradient {far:.2e}")
    assert far < 0.08
