"""Put a loaded model's frozen linear layers into FP8, in place, layer by layer.

Only the layers behind or without LoRA change; the output head, embeddings, norms and LoRA's own matrices stay. PEFT and
Unsloth both call the layer or read its weight, so plain PEFT works as it is. Unsloth's fused functions for attention
and SwiGLU give way to those of `functions.py`, which quantize a shared input once; where a layer is none of these (a
bias, dropout, GeGLU), Unsloth's or PEFT's own way multiplies with the same FP8 weights.
"""

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch

from toolkit.train.fp8.functions import Lora, linears, swiglu_layer
from toolkit.train.fp8.weights import Group, fits, make_group

SHARED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))  # layers of one module that have the same input


class Fp8Linear(torch.nn.Module):  # type: ignore[misc]
    """A frozen linear layer in FP8; `weight` are the bytes of its rows, with its columns as their `quant_state`."""

    def __init__(self, linear: torch.nn.Linear, group: Group, place: int) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.state = group.members[place]
        self.weight = torch.nn.Parameter(self.state.rows.values.view(torch.uint8), requires_grad=False)
        self.weight.quant_state = self.state
        self.bias = linear.bias
        self.group = group
        self.alone = Group([self.state], self.state.columns)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return x Wᵀ + bias, in the dtype of x, or of autocast."""
        (found,) = linears(x, self.alone)
        return found if self.bias is None else found + self.bias.to(found.dtype)


def convert(model: Any) -> int:
    """Put each linear layer of a model into FP8, but its output head and LoRA's; return how many there are.

    The layers' weights are in 16 bits or more. Layers whose sizes are no multiple of 16 stay as they are.
    """
    head = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
    count = 0
    for name, module in list(model.named_modules()):
        if "lora_" in name or isinstance(module, Fp8Linear):
            continue
        left = {key: child for key, child in module.named_children() if _convertible(child, head)}
        if hasattr(module, "base_layer"):
            continue  # its own parent converts it
        for names in (*SHARED, *((key,) for key in left)):
            if all(key in left for key in names):
                count += _convert([left.pop(key) for key in names], module, names)
    return count


def _convertible(module: Any, head: Any) -> bool:
    linear = getattr(module, "base_layer", module)
    plain = isinstance(linear, torch.nn.Linear) and linear.weight.is_floating_point()
    return plain and linear is not head and module is not head and fits(linear.in_features, linear.out_features)


def _convert(modules: Sequence[Any], parent: Any, names: Sequence[str]) -> int:
    old = [getattr(module, "base_layer", module) for module in modules]
    group = make_group([linear.weight for linear in old])
    for place, (module, linear, name) in enumerate(zip(modules, old, names, strict=True)):
        fresh = Fp8Linear(linear, group, place)
        if module is linear:
            setattr(parent, name, fresh)
        else:
            module.base_layer = fresh
        linear.weight = None  # freed now, so that both copies of a layer take its place
    return len(modules)


def fuse(model: Any, kernels: Any) -> int:
    """Replace Unsloth's fused functions of attention and SwiGLU, and return how many were replaced.

    `kernels` is the module `unsloth.kernels.fast_lora`. A module keeps what it has where it is not one of these.
    """
    count = 0
    for module in model.modules():
        values = module.__dict__
        if values.get("apply_qkv") is kernels.apply_lora_qkv:
            module.apply_qkv = _eager(attention_inputs)
            count += 1
        if values.get("apply_o") is kernels.apply_lora_o:
            module.apply_o = _eager(attention_output)
            count += 1
        if getattr(values.get("forward"), "__func__", None) is kernels.apply_lora_mlp_swiglu:
            module.forward = types.MethodType(_eager(swiglu_module), module)
            count += 1
    return count


@functools.cache
def _eager(function: Any) -> Any:
    """Keep a function out of the compiled blocks that Unsloth makes of unpacked passes: it launches kernels itself."""
    return torch.compiler.disable(function)


def attention_inputs(module: Any, x: torch.Tensor, inplace: bool = True) -> tuple[torch.Tensor, ...]:
    """Return query, key and value of x; in the place of Unsloth's `apply_qkv`."""
    layers = [module.q_proj, module.k_proj, module.v_proj]
    pairs = [_pair(layer) for layer in layers]
    if None in pairs or not _together(layers):
        return tuple(layer(x) for layer in layers)
    return linears(x, layers[0].base_layer.group, [pair for pair in pairs if pair])


def attention_output(module: Any, x: torch.Tensor) -> torch.Tensor:
    """Return the attention's output of x; in the place of Unsloth's `apply_o`."""
    pair = _pair(module.o_proj)
    if pair is None:
        found: torch.Tensor = module.o_proj(x)
        return found
    return linears(x, module.o_proj.base_layer.alone, [pair])[0]


def swiglu_module(module: Any, x: torch.Tensor, inplace: bool = True) -> torch.Tensor:
    """Return what a SwiGLU layer makes of x; in the place of Unsloth's forward of such a module."""
    layers = [module.gate_proj, module.up_proj, module.down_proj]
    pairs = [_pair(layer) for layer in layers]
    if None in pairs or not _together(layers[:2]):
        found: torch.Tensor = module.down_proj(module.act_fn(module.gate_proj(x)) * module.up_proj(x))
        return found
    return swiglu_layer(x, layers[0].base_layer.group, layers[2].base_layer.alone, [pair for pair in pairs if pair])


def _together(layers: Sequence[Any]) -> bool:
    """Tell whether these layers are all that their group has."""
    group = layers[0].base_layer.group
    return len(group.members) == len(layers) and all(layer.base_layer.group is group for layer in layers)


def _pair(layer: Any) -> Lora | None:
    """Return the LoRA pair of a layer in FP8; None where the layer does more or less than add it.

    That is: without LoRA, with several adapters, DoRA, dropout, a bias, or an adapter that is merged or switched off.
    """
    base = getattr(layer, "base_layer", None)
    if not isinstance(base, Fp8Linear) or base.bias is not None or layer.disable_adapters or layer.merged:
        return None
    active = layer.active_adapters
    if len(active) != 1 or active[0] not in layer.lora_A or getattr(layer, "lora_variant", {}).get(active[0]):
        return None
    (name,) = active
    dropout, b = layer.lora_dropout[name], layer.lora_B[name]
    idle = isinstance(dropout, torch.nn.Identity) or not dropout.training or dropout.p == 0
    if not idle or b.bias is not None:
        return None
    return Lora(layer.lora_A[name].weight, b.weight, layer.scaling[name])
