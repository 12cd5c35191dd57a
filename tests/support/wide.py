"""A base as wide as Llama-3.1-8B with few layers, written without holding it in memory, and a run folder around it."""

import json
import struct
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"hidden_size": 4096, "intermediate_size": 14336, "num_attention_heads": 32, "num_key_value_heads": 8,
         "vocab_size": 128_256}  # fmt: skip
BLOCK = 1 << 22  # random weights, which repeat


def shapes(layers: int, sizes: dict[str, int]) -> dict[str, tuple[int, ...]]:
    """List a Llama's tensors."""
    hidden, wide, vocabulary = sizes["hidden_size"], sizes["intermediate_size"], sizes["vocab_size"]
    narrow = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    layer = {
        "input_layernorm": (hidden,), "post_attention_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden), "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden), "self_attn.o_proj": (hidden, hidden),
        "mlp.gate_proj": (wide, hidden), "mlp.up_proj": (wide, hidden), "mlp.down_proj": (hidden, wide),
    }  # fmt: skip
    found = {f"model.layers.{index}.{name}.weight": shape for index in range(layers) for name, shape in layer.items()}
    ends = {"model.embed_tokens.weight": (vocabulary, hidden), "lm_head.weight": (vocabulary, hidden)}
    return {**found, **ends, "model.norm.weight": (hidden,)}


def save_wide(folder: Path, layers: int, **sizes: int) -> None:
    """Write config.json and bfloat16 weights of a Llama of a few layers; its tokenizer is not made."""
    sizes = {**SIZES, **sizes}
    tensors = shapes(layers, sizes)
    header: dict[str, Any] = {}
    end = 0
    for name, shape in tensors.items():
        header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [end, end + 2 * prod(shape)]}
        end += 2 * prod(shape)
    text = json.dumps(header).encode()
    draw = np.random.default_rng(0)
    values = draw.standard_normal(BLOCK, np.float32) * np.float32(0.02)
    block = (values.view(np.uint32) >> 16).astype(np.uint16)
    ones = np.full(sizes["hidden_size"], 0x3F80, np.uint16)
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for shape in tensors.values():
            if len(shape) == 1:
                file.write(ones.tobytes())
                continue
            left = prod(shape)
            while left:
                count = min(left, BLOCK)
                file.write(block[:count].tobytes())
                left -= count
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "num_hidden_layers": layers,
        "max_position_embeddings": 8192, "rms_norm_eps": 1e-5, "rope_theta": 500000.0, "bos_token_id": 0,
        "eos_token_id": 1, "tie_word_embeddings": False, "torch_dtype": "bfloat16", **sizes,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


def save_lora(folder: Path, layers: int, rank: int = 4, **sizes: int) -> None:
    """Write a LoRA adapter on all linear layers, as PEFT saves it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(1)
    tensors = {}
    for name, shape in shapes(layers, {**SIZES, **sizes}).items():
        if "_proj" in name:
            place = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{place}.lora_A.weight"] = torch.randn(rank, shape[1]) * 0.02
            tensors[f"{place}.lora_B.weight"] = torch.randn(shape[0], rank) * 0.02
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
