"""A random-weight Llama of 8B's width with a LoRA, made without a GPU and with little memory; used by benchmarks."""

import json
import os
import shutil
import struct
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit import kernels

WIDTH, FORWARD, VOCABULARY, HEADS, KV_HEADS = 4096, 14336, 128_256, 32, 8
LAYER = 2 * WIDTH * WIDTH + 2 * WIDTH * WIDTH // 4 + 3 * WIDTH * FORWARD  # weights


def make_base(folder: Path, layers: int) -> None:
    """Write a checkpoint of random weights tensor by tensor, in shards of one layer, with a made-up vocabulary."""
    folder.mkdir()
    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": WIDTH, "head_dim": 128,
        "intermediate_size": FORWARD, "num_hidden_layers": layers, "num_attention_heads": HEADS,
        "num_key_value_heads": KV_HEADS, "vocab_size": VOCABULARY, "max_position_embeddings": 131_072,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": False, "torch_dtype": "bfloat16",
        "rope_theta": 500_000.0, "bos_token_id": 128_000, "eos_token_id": 128_001,
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 8192},
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    save_vocabulary(folder)
    parts: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (VOCABULARY, WIDTH)}]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes = {f"{prefix}{name}.weight": shape for name, shape in linear_shapes().items()}
        norms = {f"{prefix}{name}.weight": (WIDTH,) for name in ("input_layernorm", "post_attention_layernorm")}
        parts.append({**norms, **shapes})
    parts.append({"model.norm.weight": (WIDTH,), "lm_head.weight": (VOCABULARY, WIDTH)})
    places = {}
    random = np.random.default_rng(0)
    pool = random.standard_normal(1 << 24, np.float32)
    for number, part in enumerate(parts, 1):
        file = f"model-{number:05}-of-{len(parts):05}.safetensors"
        places.update(dict.fromkeys(part, file))
        save_bfloat16(folder / file, part, pool, random)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))


def linear_shapes() -> dict[str, tuple[int, int]]:
    """The linear layers of one block, (out, in)."""
    keys = WIDTH * KV_HEADS // HEADS
    return {
        "self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (keys, WIDTH), "self_attn.v_proj": (keys, WIDTH),
        "self_attn.o_proj": (WIDTH, WIDTH), "mlp.gate_proj": (FORWARD, WIDTH), "mlp.up_proj": (FORWARD, WIDTH),
        "mlp.down_proj": (WIDTH, FORWARD),
    }  # fmt: skip


def save_bfloat16(
    path: Path, shapes: dict[str, tuple[int, ...]], pool: np.ndarray, random: np.random.Generator
) -> None:
    """Write one safetensors file of normal weights; big tensors are stretches of `pool` from random places."""
    header, place = {}, 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        header[name] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [place, place + size]}
        place += size
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            left = int(np.prod(shape))
            while left:
                start = int(random.integers(0, pool.size // 2))
                values = pool[start : start + min(left, pool.size // 2)] * np.float32(0.02)
                if "norm" in name:
                    values = 1 + values
                file.write(kernels.to_bf16(values).data)
                left -= values.size


def save_vocabulary(folder: Path) -> None:
    """Write a byte-level BPE of 128,000 made-up tokens with Llama-3's pre-tokenizer, and two special tokens."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, processors

    from toolkit.formats.pretokenizers import LLAMA3_SPLIT

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pairs = [(a, b) for a in letters for b in letters]
    merges = (pairs + [(a + b, c) for a, b in pairs for c in letters[:1]])[: 128_000 - len(letters)]
    words = [*letters, *(a + b for a, b in merges)]
    model = models.BPE(vocab={word: index for index, word in enumerate(words)}, merges=merges, ignore_merges=True)
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    names = ["<|begin_of_text|>", "<|end_of_text|>"]
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{names[0]} $A", special_tokens=[(names[0], tokenizer.token_to_id(names[0]))]
    )
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": names[0], "eos_token": names[1]}
    (folder / "tokenizer_config.json").write_text(json.dumps(named))


def make_adapter(folder: Path, layers: int, rank: int = 16) -> None:
    """Write a LoRA of rank 16 on all linear layers, as PEFT saves it."""
    from safetensors.numpy import save_file

    folder.mkdir()
    random = np.random.default_rng(1)
    tensors = {}
    for layer in range(layers):
        for name, (rows, columns) in linear_shapes().items():
            module = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{module}.lora_A.weight"] = random.standard_normal((rank, columns), np.float32) * np.float32(0.01)
            tensors[f"{module}.lora_B.weight"] = random.standard_normal((rows, rank), np.float32) * np.float32(0.01)
    save_file(tensors, folder / "adapter_model.safetensors")
    targets = [name.split(".")[1] for name in linear_shapes()]
    config = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": rank, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps({**config, "base_model_name_or_path": "base"}))


def uncached(folder: Path) -> None:
    """Drop a folder's files from the page cache, so that who reads them reads the disk."""
    os.sync()
    for path in folder.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


def taken(folder: Path) -> int:
    """Bytes of disk that a folder takes; files may come and go meanwhile."""
    total = 0
    for path in [folder] if folder.is_file() else folder.rglob("*"):
        try:
            total += 512 * path.stat().st_blocks if path.is_file() else 0
        except FileNotFoundError:
            continue
    return total


def claimed(work: Path, mark: str) -> Path:
    """Return a folder that is empty, or end the process; what a killed run with this mark left there is removed."""
    work.mkdir(parents=True, exist_ok=True)
    if (work / mark).is_file():
        shutil.rmtree(work)
        work.mkdir()
    if any(work.iterdir()):
        sys.exit(f"{work} is not empty")
    return work
