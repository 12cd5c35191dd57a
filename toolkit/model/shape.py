"""The shape of a base model, from its config.json, GGUF header or well-known name, and what is counted from it."""

import json
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any


@dataclass(frozen=True)
class Shape:
    """A decoder of Llama's kind: widths in elements, `norms` a layer, `fused` for Phi-3's joined projections."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool = False
    norms: int = 2
    fused: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of one block: name → (inputs, outputs)."""
        query, key, hidden, wide = self.query, self.key_value, self.hidden, self.intermediate
        if self.fused:
            attention = {"qkv_proj": (hidden, query + 2 * key)}
            gates = {"gate_up_proj": (hidden, 2 * wide)}
        else:
            attention = {"q_proj": (hidden, query), "k_proj": (hidden, key), "v_proj": (hidden, key)}
            gates = {"gate_proj": (hidden, wide), "up_proj": (hidden, wide)}
        return {**attention, "o_proj": (query, hidden), **gates, "down_proj": (wide, hidden)}

    def linear_weights(self) -> int:
        """Count the weights of all blocks' linear layers: those that 4-bit loading quantizes."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears().values())

    def table(self) -> int:
        """Count the weights of the embedding table, the largest tensor (the head has as many)."""
        return self.vocab * self.hidden

    def parameters(self) -> int:
        """Count all parameters; a tied head counts once."""
        biases = (self.query + 2 * self.key_value) * self.qkv_bias + self.hidden * self.output_bias
        biases += (2 * self.intermediate + self.hidden) * self.mlp_bias
        small = self.norms * self.hidden + biases + 2 * self.head_dim * self.qk_norm
        return self.linear_weights() + self.layers * small + self.hidden + self.table() * (1 if self.tied else 2)

    def trainable(self, targets: list[str], rank: int) -> int:
        """Count the parameters of a LoRA adapter on the named layers: rank × (inputs + outputs) each."""
        count = self.layers * sum(
            rank * (inputs + outputs) for name, (inputs, outputs) in self.linears().items() if name in targets
        )
        ends = sum(name in targets for name in ("lm_head", "embed_tokens"))
        return count + ends * rank * (self.hidden + self.vocab)

    def unknown_targets(self, targets: list[str]) -> list[str]:
        """Return the names among `targets` that no layer of this model has."""
        return [name for name in targets if name not in {*self.linears(), "lm_head", "embed_tokens"}]


def _llama(hidden: int, layers: int, heads: int, kv_heads: int, wide: int, vocab: int, **other: Any) -> Shape:
    head_dim = other.pop("head_dim", hidden // heads)
    return Shape(hidden, layers, heads, kv_heads, head_dim, wide, vocab, **other)


# From the public config.json of each; a hub id is known by these words in its name, all of them. Phi-3 repositories of
# Unsloth hold the same weights with separate projections.
KNOWN: tuple[tuple[tuple[str, ...], Shape], ...] = (
    (("llama-3.1", "8b"), _llama(4096, 32, 32, 8, 14336, 128256)),
    (("llama-3.1", "70b"), _llama(8192, 80, 64, 8, 28672, 128256)),
    (("llama-3.1", "405b"), _llama(16384, 126, 128, 8, 53248, 128256)),
    (("mistral-7b", "v0.3"), _llama(4096, 32, 32, 8, 14336, 32768)),
    (("mistral-nemo",), _llama(5120, 40, 32, 8, 14336, 131072, head_dim=128)),
    (("unsloth/", "phi-3.5-mini"), _llama(3072, 32, 32, 32, 8192, 32064)),
    (("phi-3.5-mini",), _llama(3072, 32, 32, 32, 8192, 32064, fused=True)),
    (("unsloth/", "phi-3-medium"), _llama(5120, 40, 40, 10, 17920, 32064)),
    (("phi-3-medium",), _llama(5120, 40, 40, 10, 17920, 32064, fused=True)),
    (("gemma-2-9b",), _llama(3584, 42, 16, 8, 14336, 256000, head_dim=256, tied=True, norms=4)),
    (("gemma-2-27b",), _llama(4608, 46, 32, 16, 36864, 256000, head_dim=128, tied=True, norms=4)),
)


def known(label: str) -> Shape | None:
    """Return the shape of a base that is known by its name, None for others."""
    name = label.lower()
    return next((shape for words, shape in KNOWN if all(word in name for word in words)), None)


FAMILIES = ("llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "phi3")


def from_config(values: dict[str, Any]) -> Shape | None:
    """Read a Hugging Face config.json's values; None for a family whose layers are not of Llama's kind."""
    family = values.get("model_type")
    if family not in FAMILIES or values.get("num_local_experts"):
        return None
    try:
        hidden, heads = int(values["hidden_size"]), int(values["num_attention_heads"])
        return Shape(
            hidden=hidden,
            layers=int(values["num_hidden_layers"]),
            heads=heads,
            kv_heads=int(values.get("num_key_value_heads") or heads),
            head_dim=int(values.get("head_dim") or hidden // heads),
            intermediate=int(values["intermediate_size"]),
            vocab=int(values["vocab_size"]),
            tied=bool(values.get("tie_word_embeddings", family in ("gemma", "gemma2"))),
            norms=4 if family == "gemma2" else 2,
            fused=family == "phi3",
            qkv_bias=bool(values.get("attention_bias", family == "qwen2")),
            output_bias=bool(values.get("attention_bias")) and family != "qwen2",
            mlp_bias=bool(values.get("mlp_bias")),
            qk_norm=family == "qwen3",
        )
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return None


def from_folder(folder: Path) -> Shape | None:
    """Read the shape from a model folder's config.json; None if it is absent, damaged or of another kind."""
    try:
        values = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return from_config(values) if isinstance(values, dict) else None


def stored_parameters(folder: Path) -> int:
    """Count the elements of all safetensors in a folder by their headers; raises ValueError for a damaged file."""
    total = 0
    for path in sorted(folder.glob("*.safetensors")):
        with path.open("rb") as file:
            start = file.read(8)
            length = int.from_bytes(start, "little")
            if len(start) < 8 or length > path.stat().st_size - 8:
                raise ValueError(f"`{path}` is truncated or not safetensors")
            tensors = json.loads(file.read(length))
        for name, tensor in tensors.items():
            if name != "__metadata__":
                total += _product(tensor["shape"])
                end = tensor["data_offsets"][1]
                if 8 + length + end > path.stat().st_size:
                    raise ValueError(f"`{path}` is truncated: `{name}` ends behind the end of the file")
    return total


def _product(sizes: list[int]) -> int:
    result = 1
    for size in sizes:
        result *= size
    return result


def from_gguf(path: Path) -> Shape | None:
    """Read the shape from a GGUF file's header; None for another architecture than Llama's.

    Strings in arrays are stepped over, not kept: `gguf.GGUFReader` takes seconds for a large vocabulary. Format:
    docs/gguf.md of ggml. Raises ValueError if the file is not GGUF 2 or 3, or is truncated.
    """
    with path.open("rb") as file:
        magic, version, tensors, pairs = _unpack(file, "<4sIQQ")
        if magic != b"GGUF" or version not in (2, 3) or tensors > 1 << 20 or pairs > 1 << 20:
            raise ValueError(f"`{path}` is not a GGUF file that can be read")
        values = {}
        for _ in range(pairs):
            name = _string(file)
            values[name] = _value(file, _unpack(file, "<I")[0])
        sizes: dict[str, list[int]] = {}
        for _ in range(tensors):
            name = _string(file)
            dimensions = _unpack(file, "<I")[0]
            if dimensions > 8:
                raise ValueError(f"`{path}` is damaged: tensor `{name}` has {dimensions} dimensions")
            sizes[name] = list(_unpack(file, f"<{dimensions}Q"))
            _unpack(file, "<IQ")  # its type and offset
    if values.get("general.architecture") != "llama" or "token_embd.weight" not in sizes:
        return None
    hidden, vocab = sizes["token_embd.weight"]
    heads = values["llama.attention.head_count"]
    kv_heads = values.get("llama.attention.head_count_kv", heads)
    return Shape(
        hidden=hidden,
        layers=values["llama.block_count"],
        heads=heads,
        kv_heads=kv_heads,
        head_dim=sizes["blk.0.attn_k.weight"][1] // kv_heads,
        intermediate=values["llama.feed_forward_length"],
        vocab=vocab,
        tied="output.weight" not in sizes,
    )


# GGUF value types by number, the fixed-size ones; 8 is a string, 9 an array.
_NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}


def _unpack(file: IO[bytes], layout: str) -> tuple[Any, ...]:
    content = file.read(struct.calcsize(layout))
    if len(content) < struct.calcsize(layout):
        raise ValueError("the GGUF header is truncated")
    return struct.unpack(layout, content)


def _string(file: IO[bytes]) -> str:
    length = _unpack(file, "<Q")[0]
    if length > 1 << 24:
        raise ValueError("the GGUF header is damaged: a string is longer than 16 MB")
    return file.read(length).decode("utf-8", errors="replace")


def _value(file: IO[bytes], kind: int) -> Any:
    if kind in _NUMBERS:
        return _unpack(file, "<" + _NUMBERS[kind])[0]
    if kind == 8:
        return _string(file)
    if kind != 9:
        raise ValueError(f"the GGUF header is damaged: value type {kind}")
    item, count = _unpack(file, "<IQ")
    if count > 1 << 26:
        raise ValueError("the GGUF header is damaged: an array is too long")
    if item == 8:
        for _ in range(count):
            _string(file)
    elif item in _NUMBERS:
        _unpack(file, f"<{count}{_NUMBERS[item]}")
    else:
        raise ValueError(f"the GGUF header is damaged: an array of type {item}")
    return None
