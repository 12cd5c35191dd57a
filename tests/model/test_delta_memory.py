"""What Qwen3.5's two kinds of layers keep for the backward pass, against what torch says that they keep."""

from typing import Any

import pytest

from toolkit.core.train_settings import LORA_TARGETS, TrainSettings
from toolkit.model import memory
from toolkit.model.delta_net import DeltaNet
from toolkit.model.model_config import ModelConfig

TARGETS = [*LORA_TARGETS, "in_proj_qkv", "in_proj_z", "in_proj_a", "in_proj_b", "out_proj"]
TOKENS = 512
# Key heads, value heads, their size; query heads, key-value heads, their size; hidden size, intermediate size.
SIZES = [(2, 4, 32, 4, 2, 32, 128, 320), (4, 4, 64, 4, 1, 64, 256, 128), (2, 8, 32, 8, 4, 32, 64, 64)]


def kept_by_torch(sizes: tuple[int, ...], kind: str, *, bf16: bool) -> float:
    """Let torch say what one layer with LoRA keeps, in bytes a token; its own weights and their copies are left out."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    keys, values, size, heads, kv_heads, width, hidden, wide = sizes
    config = Qwen3_5TextConfig(
        vocab_size=64, hidden_size=hidden, intermediate_size=wide, num_hidden_layers=1, layer_types=[kind],
        num_attention_heads=heads, num_key_value_heads=kv_heads, head_dim=width, linear_num_key_heads=keys,
        linear_num_value_heads=values, linear_key_head_dim=size, linear_value_head_dim=size, use_cache=False,
    )  # fmt: skip
    model: Any = Qwen3_5ForCausalLM(config)
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=TARGETS))
    decoder = model.get_base_model().get_decoder()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights and (tensor.dim() != 2 or TOKENS in tensor.shape):
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    states = torch.randn(1, TOKENS, hidden, requires_grad=True)
    rotary = decoder.rotary_emb(states, torch.arange(TOKENS).view(1, 1, -1).expand(3, 1, -1))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=bf16),
    ):
        decoder.layers[0](states, position_embeddings=rotary, attention_mask=None)
    held: int = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return held / TOKENS


@pytest.mark.slow
@pytest.mark.parametrize("bf16", [False, True])
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ["linear_attention", "full_attention"])
def test_a_layer_keeps_what_is_computed(kind: str, sizes: tuple[int, ...], bf16: bool) -> None:
    keys, values, size, heads, kv_heads, width, hidden, wide = sizes
    delta = DeltaNet((True, False), keys, values, size, 4)
    shape = ModelConfig(hidden, 2, heads, kv_heads, width, wide, 64, qk_norm="head", gated=True, delta=delta)
    count = memory.delta_activations if kind == "linear_attention" else memory.layer_activations
    computed = count(shape, TARGETS, 2 if bf16 else 4, copied=bf16)
    assert kept_by_torch(sizes, kind, bf16=bf16) == pytest.approx(computed, rel=0.2)


def test_the_plan_counts_each_kind_of_layer() -> None:
    """27B's shape has 48 layers with a state and 16 that attend: only these have masks and a cache of keys."""
    marks = tuple((layer + 1) % 4 != 0 for layer in range(64))
    delta = DeltaNet(marks, 16, 48, 128, 4)
    shape = ModelConfig(5120, 64, 24, 4, 256, 17408, 248320, qk_norm="head", gated=True, delta=delta)
    assert (shape.recurrent, shape.attending) == (48, 16)
    settings = TrainSettings(gradient_checkpointing=False, target_modules=TARGETS)
    parts = memory.training_cpu(shape, settings, bf16=False, tokens=1000)
    linear = memory.delta_activations(shape, TARGETS, 4, copied=False)
    attending = memory.layer_activations(shape, TARGETS, 4, copied=False)
    whole = 1000 * (48 * linear + 16 * attending)
    assert parts["activations"] == pytest.approx(whole * (1 + memory.HOLES[4, False]))
    assert parts["attention masks"] == (1 + 16 * 4) * 1000**2
    assert shape.trainable(["q_proj"], 8) == 16 * 8 * (5120 + 2 * 24 * 256)
    assert shape.trainable(["out_proj"], 8) == 48 * 8 * (6144 + 5120)
    assert 26e9 < shape.parameters() < 28e9
