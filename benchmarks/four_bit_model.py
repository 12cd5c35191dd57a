"""A random-weight model of a Llama-3.1's shape in bitsandbytes' NF4, with Llama-3's real vocabulary; needs CUDA.

    python benchmarks/four_bit_model.py FOLDER [--size 8b] [--layers 32]

8B takes 12 seconds on an H100 and 6 GB of disk. The tokenizer comes from the package llama-models, as in the tests.
"""

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file

sys.path.insert(0, str(Path(__file__).parents[1]))
from tests.support.vocabularies import make_llama3
from toolkit.model.known_models import known_model
from toolkit.model.model_config import ModelConfig

LAYERS_A_SHARD = 8


def config(shape: ModelConfig) -> dict[str, object]:
    """Return config.json: Llama-3.1's, quantized as Unsloth's repositories are."""
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 8192}  # fmt: skip
    quantization = {"quant_method": "bitsandbytes", "load_in_4bit": True, "load_in_8bit": False,
                    "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True,
                    "bnb_4bit_compute_dtype": "bfloat16", "bnb_4bit_quant_storage": "uint8"}  # fmt: skip
    return {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "torch_dtype": "bfloat16", "hidden_act": "silu",
        "hidden_size": shape.hidden, "intermediate_size": shape.intermediate, "num_hidden_layers": shape.layers,
        "vocab_size": shape.vocab, "num_attention_heads": shape.heads, "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 131072, "rope_theta": 500000.0, "rope_scaling": scaling, "bos_token_id": 128000,
        "eos_token_id": 128001, "tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False,
        "initializer_range": 0.02, "quantization_config": quantization,
    }  # fmt: skip


def random(*shape: int) -> torch.Tensor:
    """Return normal weights of the usual first size, bf16 on the GPU."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16) * 0.02


def four_bit(name: str, inputs: int, outputs: int) -> dict[str, torch.Tensor]:
    """Return one linear layer as bitsandbytes saves it: the packed weight and its state."""
    from bitsandbytes.functional import quantize_4bit

    packed, state = quantize_4bit(random(outputs, inputs), blocksize=64, compress_statistics=True, quant_type="nf4")
    return {name: packed.cpu(), **{f"{name}.{key}": part.cpu() for key, part in state.as_dict(packed=True).items()}}


def build(folder: Path, shape: ModelConfig) -> None:
    """Write config, tokenizer and shards into the folder."""
    torch.manual_seed(0)
    folder.mkdir(parents=True, exist_ok=True)
    make_llama3(folder)
    (folder / "config.json").write_text(json.dumps(config(shape), indent=2))
    ones = torch.ones(shape.hidden, dtype=torch.bfloat16)
    places: dict[str, str] = {}

    def save(shard: dict[str, torch.Tensor]) -> None:
        name = f"model-{len(set(places.values())) + 1:05}.safetensors"
        save_file({key: tensor.contiguous() for key, tensor in shard.items()}, folder / name, metadata={"format": "pt"})
        places.update(dict.fromkeys(shard, name))

    save({"model.embed_tokens.weight": random(shape.vocab, shape.hidden).cpu()})
    save({"lm_head.weight": random(shape.vocab, shape.hidden).cpu(), "model.norm.weight": ones})
    for first in range(0, shape.layers, LAYERS_A_SHARD):
        shard: dict[str, torch.Tensor] = {}
        for layer in range(first, min(first + LAYERS_A_SHARD, shape.layers)):
            start = f"model.layers.{layer}."
            for name, widths in shape.linears().items():
                part = "mlp" if name in ("gate_proj", "up_proj", "down_proj") else "self_attn"
                shard |= four_bit(f"{start}{part}.{name}.weight", *widths)
            shard |= {f"{start}{norm}_layernorm.weight": ones.clone() for norm in ("input", "post_attention")}
        save(shard)
    total = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    index = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--size", choices=("8b", "70b"), default="8b")
    parser.add_argument("--layers", type=int, help="another number of blocks")
    arguments = parser.parse_args()
    shape = known_model(f"llama-3.1-{arguments.size}")
    assert shape is not None
    build(arguments.folder, replace(shape, layers=arguments.layers or shape.layers))
