"""Every family computes in llama.cpp what it computes in transformers; what would be computed otherwise is refused."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.support import families, models
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.export import export, plan
from toolkit.model.families import family_of


def kl(base: Path, adapter: Path | None, gguf: Path, length: int) -> float:
    """Return the mean KL divergence, in nats, of a GGUF in llama.cpp from transformers, over random tokens."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    ids = np.random.default_rng(0).integers(0, 480, length).tolist()
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, attn_implementation="eager")
    if adapter:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.no_grad():
        expected = models.log_softmax(model.eval()(torch.tensor([ids])).logits[0].numpy())
    with llamacpp.opened(gguf, length, exact=True) as llm:
        found = models.log_softmax(llamacpp.logits(llm, ids, 0))
    return float((np.exp(expected) * (expected - found)).sum(axis=-1).mean())


FAST = (("nemo", 48), ("phi3.5", 300), ("phi4mini", 48), ("gemma2", 300))
# Heads of their own size, longrope, a part of each head turned, a sliding window.


PART = {"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.72}


class TableGelu(torch.nn.Module):  # type: ignore[misc]
    """GELU as llama.cpp computes it on a CPU: from a table of 65,536 float16 values."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Round input and output to float16; beyond ±10 it is the input or nothing."""
        near = torch.nn.functional.gelu(x.half().float(), approximate="tanh").half().float()
        return torch.where(x <= -10, torch.zeros_like(x), torch.where(x >= 10, x, near))


@pytest.fixture
def table_gelu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give transformers' Gemma-2 the runtime's GELU, so that all the rest can be compared to rounding."""
    from transformers.models.gemma2.modeling_gemma2 import Gemma2MLP

    former = Gemma2MLP.__init__

    def changed(self: Any, config: Any) -> None:
        former(self, config)
        self.act_fn = TableGelu()

    monkeypatch.setattr(Gemma2MLP, "__init__", changed)


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize(
    ("family", "length"),
    [
        pytest.param(family, length, marks=() if (family, length) in FAST else pytest.mark.slow)
        for family in families.FAMILIES
        for length in (48, 300)
    ],
)
def test_logits(family: str, length: int, tmp_path: Path) -> None:
    """48 tokens lie within longrope's original context of 256, 300 beyond; Gemma-2's window has 24."""
    base = families.save(tmp_path / "base", family)
    export(base, None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert kl(base, None, tmp_path / "a.gguf", length) <= 1e-9


def test_logits_of_gemma_with_its_own_gelu(tmp_path: Path) -> None:
    """The table costs this much, and no more; it is the runtime's, not the file's."""
    base = families.save(tmp_path / "base", "gemma2")
    export(base, None, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert 1e-9 < kl(base, None, tmp_path / "a.gguf", 48) <= 1e-7


@pytest.mark.usefixtures("table_gelu")
@pytest.mark.parametrize("family", ["phi3.5", pytest.param("gemma2", marks=pytest.mark.slow)])
def test_an_adapter_is_merged_before_anything_else(family: str, tmp_path: Path) -> None:
    """Phi-3's fused modules get one LoRA each, which reaches query, key, value, gate and up at once."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = families.save(tmp_path / "base", family)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(target_modules="all-linear", r=4))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_" in name:
                weight.copy_(0.05 * torch.randn(weight.shape))
    model.save_pretrained(tmp_path / "adapter")
    export(base, tmp_path / "adapter", {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert kl(base, tmp_path / "adapter", tmp_path / "a.gguf", 48) <= 1e-9
    assert kl(base, None, tmp_path / "a.gguf", 48) > 1e-4


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("llama", {"architectures": ["FalconForCausalLM"]}, "architecture FalconForCausalLM, which cannot be exported"),
        ("mistral", {"hidden_act": "gelu"}, "llama.cpp supports only 'silu'"),
        (
            "phi3",
            {"rope_parameters": PART},
            "`partial_rotary_factor` is 0.72, which is not an even number of 32 dimensions",
        ),
        ("phi3", {"rope_parameters": None, "partial_rotary_factor": 1.5}, "`partial_rotary_factor` is 1.5"),
        (
            "phi4mini",
            {"rope_parameters": {**families.LONGROPE, "partial_rotary_factor": 0.75}},
            "`(short|long)_factor` has 16 values",
        ),
        ("phi3", {"head_dim": 64}, "the head size is 64"),
        (
            "phi3.5",
            {"rope_parameters": {**families.LONGROPE, "long_factor": [1.0] * 4}},
            "`long_factor` has 4 values",
        ),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "short_factor": None}}, "no valid `short_factor`"),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "attention_factor": 1.5}}, "`attention_factor` is 1.5"),
        ("phi3.5", {"rope_parameters": {**families.LONGROPE, "rope_type": "yarn"}}, "rope scaling 'yarn'"),
        ("phi3.5", {"rope_parameters": 3}, "no valid rope parameters"),
        ("gemma2", {"query_pre_attn_scalar": 224}, "`query_pre_attn_scalar` is 224"),
        ("gemma2", {"layer_types": ["full_attention"] * 2}, "`layer_types`"),
        ("gemma2", {"hidden_activation": "silu"}, "`hidden_activation` is 'silu'"),
        ("gemma2", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}, "`rope_theta` is 500000.0"),
        ("gemma2", {"tie_word_embeddings": False}, "`tie_word_embeddings` is False"),
        ("gemma2", {"final_logit_softcapping": -1}, "no valid `final_logit_softcapping`"),
        ("gemma2", {"sliding_window": 0}, "no valid `sliding_window`"),
    ],
)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    family: str, changes: dict[str, Any], words: str, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text(json.dumps({**_config(family), **changes}))
    with pytest.raises(ToolkitError, match=words):
        plan(tmp_path, None, ["F16"])


def _config(family: str) -> dict[str, Any]:
    import transformers

    name, own, _ = families.FAMILIES[family]
    make: Callable[..., Any] = getattr(transformers, f"{name}Config")
    config = make(**{**families.COMMON, "vocab_size": 608, **own})
    return {**config.to_dict(), "architectures": [f"{name}ForCausalLM"]}


def test_a_window_that_llama_cpp_leaves_out_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = families.save(tmp_path / "base", "mistral", sliding_window=64)
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    assert "without its sliding window: beyond 64 tokens" in capsys.readouterr().err


def test_gemma_cannot_be_untied(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(_config("gemma2")))
    family, model = family_of(tmp_path)
    with pytest.raises(ToolkitError, match="Gemma-2 has no separate one"):
        family.layouts(replace(model, tied=False))
