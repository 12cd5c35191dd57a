"""LoRA's matrices cast once a pass: the same numbers as one by one, in fewer copies."""

import types
from collections.abc import Callable
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

from toolkit.train import lora_casts

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
IDS = torch.arange(48).reshape(2, 24)


def fast_lora() -> types.SimpleNamespace:
    """What of Unsloth's module is asked for: the base's weight, and the LoRA pair of a layer."""

    def get_lora_parameters(layer: Any) -> tuple[Any, ...]:
        name = layer.active_adapters[0]
        return layer.base_layer.weight, None, layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]

    return types.SimpleNamespace(get_lora_parameters=get_lora_parameters)


def adapted(kernels: types.SimpleNamespace, seen: list[torch.dtype] | None = None) -> Any:
    """A small model in bf16 with float32 LoRA, whose layers compute as Unsloth's do: each casts what it was given."""
    torch.manual_seed(0)
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4, "num_key_value_heads": 2}
    base = LlamaForCausalLM(LlamaConfig(**sizes, num_hidden_layers=2, vocab_size=128)).to(torch.bfloat16)
    model = get_peft_model(base.requires_grad_(False), LoraConfig(r=4, lora_alpha=8, target_modules=TARGETS))

    def forward_of(layer: Any) -> Callable[[torch.Tensor], torch.Tensor]:
        def forward(x: torch.Tensor) -> torch.Tensor:
            weight, _, a, b, scale = kernels.get_lora_parameters(layer)
            if seen is not None:
                seen.extend((a.dtype, b.dtype))
            return x @ weight.t() + scale * ((x @ a.to(x.dtype).t()) @ b.to(x.dtype).t())

        return forward

    for module in model.modules():
        if hasattr(module, "base_layer"):
            module.forward = forward_of(module)
    for name, weight in model.named_parameters():
        if "lora_" in name:
            weight.data = torch.randn(weight.shape) / 8
    return model.train()


def trained(model: Any) -> tuple[list[float], list[torch.Tensor]]:
    """Losses of four steps of two micro-batches, and all LoRA matrices after them."""
    parameters = [weight for weight in model.parameters() if weight.requires_grad]
    optimizer, losses = torch.optim.AdamW(parameters, lr=0.01), []
    for _ in range(4):
        for ids in IDS:
            loss = model(input_ids=ids[None], labels=ids[None]).loss
            loss.backward()
            losses.append(float(loss.detach()))
        optimizer.step()
        optimizer.zero_grad()
    return losses, [weight.detach().clone() for weight in parameters]


def test_losses_and_weights_are_the_same_to_the_last_bit() -> None:
    one_by_one = trained(adapted(fast_lora()))
    kernels = fast_lora()
    model = adapted(kernels)
    assert lora_casts.cast_together(model, kernels, torch.bfloat16) == 2 * 2 * len(TARGETS)
    together = trained(model)
    assert together[0] == one_by_one[0] and len(set(together[0])) > 4
    assert all(torch.equal(one, other) for one, other in zip(together[1], one_by_one[1], strict=True))


def test_the_gradients_lie_in_one_block() -> None:
    """So that no copy of each was made."""
    kernels = fast_lora()
    model = adapted(kernels)
    lora_casts.cast_together(model, kernels, torch.bfloat16)
    model(input_ids=IDS, labels=IDS).loss.backward()
    gradients = [weight.grad for weight in model.parameters() if weight.requires_grad]
    assert len({gradient.untyped_storage().data_ptr() for gradient in gradients}) == 1
    assert all(gradient.dtype == torch.float32 and bool(gradient.any()) for gradient in gradients)


def test_a_matrix_that_no_layer_uses_has_no_gradient() -> None:
    """For example because PEFT computes that layer, from the float32 matrices."""
    kernels = fast_lora()
    model = adapted(kernels)
    lora_casts.cast_together(model, kernels, torch.bfloat16)
    layer = model.base_model.model.model.layers[0].self_attn.o_proj
    layer.forward = layer.base_layer.forward
    model(input_ids=IDS, labels=IDS).loss.backward()
    missing = [name for name, weight in model.named_parameters() if weight.requires_grad and weight.grad is None]
    assert len(missing) == 2 and all("layers.0.self_attn.o_proj.lora_" in name for name in missing)


@pytest.mark.parametrize("way", ["training", "evaluation", "without gradients"])
def test_only_training_passes_take_the_casts(way: str) -> None:
    kernels, seen = fast_lora(), list[torch.dtype]()
    model = adapted(kernels, seen)
    lora_casts.cast_together(model, kernels, torch.bfloat16)
    model.train(way != "evaluation")
    with torch.set_grad_enabled(way != "without gradients"):
        model(input_ids=IDS)
    assert set(seen) == {torch.bfloat16 if way == "training" else torch.float32}


def test_a_pass_that_fails_leaves_no_casts() -> None:
    kernels = fast_lora()
    model = adapted(kernels)
    lora_casts.cast_together(model, kernels, torch.bfloat16)
    with pytest.raises(IndexError):
        model(input_ids=IDS + 1000)
    assert kernels.get_lora_parameters(model.base_model.model.model.layers[0].mlp.up_proj)[2].dtype == torch.float32


def test_a_second_model_of_a_process_asks_unsloth_itself() -> None:
    kernels = fast_lora()
    first = kernels.get_lora_parameters
    for _ in range(2):
        lora_casts.cast_together(adapted(kernels), kernels, torch.bfloat16)
    assert kernels.get_lora_parameters.__wrapped__ is first
