"""Put a model that Unsloth loaded into Unsloth's own FP8, in memory, as if it came from one of its FP8 checkpoints.

Unsloth's `load_in_fp8` fetches a checkpoint in FP8 from the hub, with block scales where fbgemm_gpu is not installed. A
model that has no such checkpoint is quantized from a 16-bit folder by torchao, with row scales. Both end as linear
layers with a weight in e4m3 and a scale, which Unsloth's fused functions find on the layer. Here the layers are filled
from the base that all other ways have, so nothing is fetched and the losses can be compared. What multiplies on an H100
with torch 2.11, without fbgemm_gpu and vLLM:

- block (128 × 128): a Triton kernel quantizes the input, torchao's Triton kernel multiplies; without torchao Unsloth's.
- row: quantized by code that torch compiles, multiplied by torch._scaled_mm.
- torchao: torchao quantizes the input and multiplies, with row scales, by torch._scaled_mm.

In all three the backward pass expands each weight to bf16 again, and multiplies in bf16.
"""

import importlib
from typing import Any

import torch

SCALES = ("block", "row", "torchao")
BLOCK = 128
LARGEST = 448.0  # of e4m3


def convert(model: Any, scales: str) -> int:
    """Put the frozen layers behind LoRA into FP8, in place, and return how many there are; call it after PEFT."""
    layers = [module.base_layer for module in model.modules() if hasattr(module, "base_layer")]
    if scales == "torchao":
        _by_torchao(model)
    else:
        for layer in layers:
            weight, scale = quantize(layer.weight.detach(), scales)
            layer.weight = torch.nn.Parameter(weight, requires_grad=False)
            layer.register_buffer("weight_scale_inv" if scales == "block" else "weight_scale", scale, persistent=False)
    torch.cuda.empty_cache()
    return len(layers)


def quantize(weight: torch.Tensor, scales: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Return a weight (outputs, inputs) in e4m3, and its scales: (blocks, blocks), or (outputs, 1) for rows."""
    outputs, inputs = weight.shape
    high, wide = (BLOCK, BLOCK) if scales == "block" else (1, inputs)
    parts = weight.float().view(outputs // high, high, inputs // wide, wide)
    scale = parts.abs().amax(dim=(1, 3), keepdim=True).clamp(min=1e-12) / LARGEST
    return (parts / scale).view(outputs, inputs).to(torch.float8_e4m3fn), scale[:, 0, :, 0].contiguous()


def _by_torchao(model: Any) -> None:
    ao = importlib.import_module("torchao.quantization")  # comes with Unsloth; type checkers may not see it
    settings = ao.Float8DynamicActivationFloat8WeightConfig(granularity=ao.PerRow(), activation_value_lb=1e-12)
    ao.quantize_(model, settings, filter_fn=lambda _, name: name.endswith("base_layer"))
