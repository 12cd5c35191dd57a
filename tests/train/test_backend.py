"""How a base is loaded for a GPU, as far as a CPU can show it."""

from typing import Any

import pytest
import torch

from tests.support import families, models
from toolkit.core.config import Config
from toolkit.core.run_folder import RunFolder
from toolkit.model.attention_kernels import MASK, VARLEN
from toolkit.model.base import Base
from toolkit.model.memory_plan import MemoryPlan, Strategy
from toolkit.train import peft_backend, varlen


def plan(**strategy: Any) -> MemoryPlan:
    return MemoryPlan(1, 1, 1, 64, Strategy(False, **strategy), "", None)


def a_gpu(monkeypatch: pytest.MonkeyPatch, kernel: str) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(varlen, "choose", lambda *_: kernel)


@pytest.mark.parametrize("dequantized", [True, False])
def test_a_base_is_loaded_in_the_type_that_the_passes_compute_in(
    four_bit: Base, small: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch, dequantized: bool
) -> None:
    """Whatever the repository says: else each pass would write the frozen weights out again, in the other type."""
    a_gpu(monkeypatch, MASK)
    model = peft_backend.load_with_peft(four_bit, small[0], plan(dequantized=dequantized), None, torch.float16)
    layer = model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    if dequantized:
        assert type(layer) is torch.nn.Linear
    else:
        assert type(layer).__name__ == "Linear4bit" and layer.compute_dtype == torch.float16
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and type(p).__name__ != "Params4bit"}
    assert frozen == {torch.float16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}


def test_a_plain_base_is_quantized_on_a_gpu_alone(
    base: Base, small: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the recipe's NF4 with doubly quantized scales; a CPU trains in float32."""
    kinds = []
    for device in ("cpu", None):
        if device is None:
            a_gpu(monkeypatch, MASK)
        model = peft_backend.load_with_peft(base, small[0], plan(), device, torch.bfloat16)
        kinds.append(model.base_model.model.model.layers[0].mlp.up_proj.base_layer)
    assert type(kinds[0]) is torch.nn.Linear and kinds[0].weight.dtype == torch.float32
    assert type(kinds[1]).__name__ == "Linear4bit" and kinds[1].compute_dtype == torch.bfloat16
    assert kinds[1].weight.quant_type == "nf4" and kinds[1].weight.quant_state.nested


@pytest.mark.parametrize(
    ("family", "kernel", "attention"),
    [("llama", VARLEN, varlen.NAME), ("llama", MASK, "sdpa"), ("gemma2", MASK, "eager")],
)
def test_the_attention_is_one_that_computes_all_a_family_has(
    small: tuple[Config, RunFolder],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    family: str,
    kernel: str,
    attention: str,
) -> None:
    """torch's leaves Gemma-2's soft cap out; the kernel for packed records is told where they begin."""
    folder = families.save(small[1].path / "base", family)
    a_gpu(monkeypatch, kernel)
    model = peft_backend.load_with_peft(Base("base", folder), small[0], plan(), None, torch.bfloat16)
    assert model.config._attn_implementation == attention
    assert (varlen.add_lengths in model._forward_pre_hooks.values()) == (kernel == VARLEN)
    assert f"attention of packed records: {kernel}" in " ".join(capsys.readouterr().err.split())


@pytest.mark.slow
@pytest.mark.parametrize("family", families.THAT_SEE)
def test_of_a_base_that_sees_the_language_model_alone_is_trained(
    small: tuple[Config, RunFolder], family: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It has the logits that the whole model has for text, and no adapter on the vision tower."""
    folder = families.save(small[1].path / "base", family)
    model = peft_backend.load_with_peft(Base("base", folder), small[0], plan(), "cpu", torch.float32)
    assert not [name for name, _ in model.named_parameters() if "vision" in name or "language_model" in name]
    assert "its language model alone is trained" in " ".join(capsys.readouterr().err.split())
    ids = torch.arange(3, 60)[None]
    with torch.no_grad():
        whole = models.load(folder).eval()(input_ids=ids).logits
        torch.testing.assert_close(model.eval()(input_ids=ids).logits, whole, rtol=1e-4, atol=1e-4)
