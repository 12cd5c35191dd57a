"""A model's frozen layers in FP8: which change, and that PEFT and Unsloth's places for functions work with them."""

import types
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM

from toolkit.train.fp8 import install, proof
from toolkit.train.fp8.install import Fp8Linear

TARGETS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SIZES: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 128, "tie_word_embeddings": False,
}  # fmt: skip
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "qwen2": (Qwen2Config, Qwen2ForCausalLM)}


def adapted(kind: str = "llama", targets: list[str] = TARGETS, **more: Any) -> Any:
    """A small model with LoRA that adds something."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config, model = KINDS[kind]
    made = get_peft_model(
        model(config(**SIZES)).requires_grad_(False), LoraConfig(r=4, lora_alpha=8, target_modules=targets, **more)
    )
    for name, weight in made.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight, std=0.05)
    return made.train()


def loss_and_gradients(model: Any) -> tuple[float, dict[str, torch.Tensor]]:
    ids = torch.arange(48).reshape(2, 24)
    loss = model(input_ids=ids, labels=ids).loss
    loss.backward()
    found = {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}
    model.zero_grad()
    return float(loss.detach()), found


@pytest.mark.parametrize(("kind", "targets"), [("llama", TARGETS), ("llama", ["q_proj", "v_proj"]), ("qwen2", TARGETS)])
def test_a_model_in_fp8_has_nearly_the_loss_and_gradients(kind: str, targets: list[str]) -> None:
    """Of every layer; the adapter, the head and the embeddings are as they were. Qwen2's attention has biases."""
    model = adapted(kind, targets)
    loss, gradients = loss_and_gradients(model)
    kept = {name: one for name, one in model.state_dict().items() if "_proj.base_layer" not in name}
    total = sum(weight.numel() for weight in model.parameters())
    assert install.convert(model) == 14
    assert sum(isinstance(module, Fp8Linear) for module in model.modules()) == 14
    assert type(model.get_output_embeddings()) is torch.nn.Linear
    assert sum(weight.numel() for weight in model.parameters()) == total
    after = model.state_dict()
    assert all(torch.equal(after[name], one) for name, one in kept.items() if "_proj.weight" not in name)
    again, found = loss_and_gradients(model)
    assert again == pytest.approx(loss, rel=0.01)
    assert found.keys() == gradients.keys()
    for name, gradient in gradients.items():
        far = torch.cosine_similarity(gradient.flatten(), found[name].flatten(), dim=0)
        assert float(far) > 0.98, name
    assert install.convert(model) == 0  # nothing is left


def test_sizes_that_fp8_does_not_take_stay(capsys: pytest.CaptureFixture[str]) -> None:
    from peft import LoraConfig, get_peft_model

    config = LlamaConfig(**{**SIZES, "intermediate_size": 88})
    model = get_peft_model(LlamaForCausalLM(config), LoraConfig(r=4, target_modules=TARGETS))
    assert install.convert(model) == 2 * 4
    assert type(model.base_model.model.model.layers[0].mlp.up_proj.base_layer) is torch.nn.Linear
    loss_and_gradients(model)


def unsloths(model: Any) -> types.SimpleNamespace:
    """Put functions where Unsloth puts its own, and return what stands for its module."""
    names = ("apply_lora_qkv", "apply_lora_o", "apply_lora_mlp_swiglu")
    kernels = types.SimpleNamespace(**{name: (lambda *_, name=name: name) for name in names})
    for layer in model.base_model.model.model.layers:
        layer.self_attn.apply_qkv, layer.self_attn.apply_o = kernels.apply_lora_qkv, kernels.apply_lora_o
        layer.mlp.forward = types.MethodType(kernels.apply_lora_mlp_swiglu, layer.mlp)
    return kernels


def by_fused(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    attention = layer.self_attn
    return [*attention.apply_qkv(attention, x), attention.apply_o(attention, x), layer.mlp(x)]


def by_module(layer: Any, x: torch.Tensor) -> list[torch.Tensor]:
    attention, mlp = layer.self_attn, layer.mlp
    outputs = [getattr(attention, name)(x) for name in ("q_proj", "k_proj", "v_proj", "o_proj")]
    return [*outputs, mlp.down_proj(mlp.act_fn(mlp.gate_proj(x)) * mlp.up_proj(x))]


def test_fused_functions_take_unsloths_places_and_compute_what_the_modules_do() -> None:
    model = adapted()
    layer = model.base_model.model.model.layers[0]
    kernels = unsloths(model)
    install.convert(model)
    assert install.fuse(model, kernels) == 2 * 3
    found: dict[str, list[torch.Tensor]] = {}
    for name, way in (("fused", by_fused), ("module", by_module)):
        torch.manual_seed(1)
        x = torch.randn(1, 40, 64, requires_grad=True)
        outputs = way(layer, x)
        sum((one * one).sum() for one in outputs).backward()
        grads = [weight.grad for weight in layer.parameters() if weight.requires_grad]
        assert x.grad is not None and len(grads) == 14
        found[name] = [*outputs, x.grad, *grads]
        model.zero_grad()
    for fused, module in zip(found["fused"][:4], found["module"][:4], strict=True):
        torch.testing.assert_close(fused, module)
    for fused, module in zip(found["fused"][4:], found["module"][4:], strict=True):
        assert proof.distance(fused, module) < 0.08  # gradients of one input are rounded together


@pytest.mark.parametrize("what", ["dropout", "disabled", "partly", "two"])
def test_whatever_does_more_than_add_lora_goes_through_the_modules(what: str) -> None:
    model = adapted(lora_dropout=0.5 if what == "dropout" else 0.0)
    layer = model.base_model.model.model.layers[1]
    kernels = unsloths(model)
    install.convert(model)
    install.fuse(model, kernels)
    if what == "disabled":
        model.base_model.disable_adapter_layers()
    elif what == "two":
        from peft import LoraConfig

        model.add_adapter("other", LoraConfig(r=2, target_modules=TARGETS))
        model.base_model.set_adapter(["default", "other"])
    elif what == "partly":
        layer.self_attn.q_proj = layer.self_attn.q_proj.base_layer
        layer.self_attn.o_proj, layer.mlp.up_proj = layer.self_attn.o_proj.base_layer, layer.mlp.up_proj.base_layer
    x = torch.randn(1, 8, 64)
    torch.manual_seed(2)
    found = by_fused(layer, x)
    torch.manual_seed(2)
    for one, other in zip(found, by_module(layer, x), strict=True):
        assert torch.equal(one, other)


def test_other_modules_keep_what_they_have() -> None:
    model = adapted()
    kernels = unsloths(model)
    own = model.base_model.model.model.layers[0].mlp.forward = types.MethodType(lambda *_: None, model)
    install.convert(model)
    assert install.fuse(model, kernels) == 5
    assert model.base_model.model.model.layers[0].mlp.__dict__["forward"] == own
