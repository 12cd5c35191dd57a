"""How a base is loaded for a card, as far as a CPU can show it."""

from pathlib import Path

import pytest
import torch

from toolkit.base import Base
from toolkit.config import Config
from toolkit.memory import Plan, Way
from toolkit.run import RunFolder
from toolkit.train import attention, peft_backend, varlen


@pytest.fixture
def four_bit(base: Base, tmp_path: Path) -> Base:
    """The small base as the hub's 4-bit repositories are: stored as integers, computing in bf16."""
    pytest.importorskip("bitsandbytes")
    from transformers import AutoModelForCausalLM

    quantization = peft_backend._four_bit(torch.bfloat16)
    quantization.bnb_4bit_quant_storage = torch.uint8
    options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "quantization_config": quantization}
    AutoModelForCausalLM.from_pretrained(base.folder, **options).save_pretrained(tmp_path / "four")
    return Base("four", tmp_path / "four")


@pytest.mark.parametrize("dequantized", [True, False])
def test_a_base_is_loaded_in_the_type_that_the_passes_compute_in(
    four_bit: Base, small: tuple[Config, RunFolder], monkeypatch: pytest.MonkeyPatch, dequantized: bool
) -> None:
    """Whatever the repository says: else each pass would write the frozen weights out again, in the other type."""
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: None)
    monkeypatch.setattr(attention, "kernel", lambda *_: "none")
    monkeypatch.setattr(varlen, "announce", lambda _: None)
    plan = Plan(64, 8, Way(False, dequantized=dequantized), "", None)
    model = peft_backend.load(four_bit, small[0], plan, None, torch.float16)
    layer = model.base_model.model.model.layers[0].mlp.up_proj.base_layer
    if dequantized:
        assert type(layer) is torch.nn.Linear
    else:
        assert type(layer).__name__ == "Linear4bit" and layer.compute_dtype == torch.float16
    frozen = {p.dtype for p in model.parameters() if not p.requires_grad and type(p).__name__ != "Params4bit"}
    assert frozen == {torch.float16}
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
