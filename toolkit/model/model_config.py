"""The shape of a base model, from its config.json, GGUF header or well-known name, and what is counted from it."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.formats.bnb_4bit import config_of
from toolkit.formats.checkpoint import read_header
from toolkit.formats.gguf_reader import open_gguf


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
    return from_config(config_of(folder))


def stored_parameters(folder: Path) -> int:
    """Count the elements of all safetensors in a folder by their headers; raises ToolkitError for a damaged file."""
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    return sum(prod(tensor.shape) for header in headers for tensor in header.values())


def from_gguf(path: Path) -> Shape | None:
    """Read the shape from a GGUF file's header; None for another architecture than Llama's.

    Raises ToolkitError for a file that is damaged, or whose header lacks what a Llama has.
    """
    found = open_gguf(path)
    values, tensors = found.metadata, found.tensors
    if values.get("general.architecture") != "llama" or "token_embd.weight" not in tensors:
        return None
    try:
        vocab, hidden = tensors["token_embd.weight"].shape
        heads = values["llama.attention.head_count"]
        kv_heads = values.get("llama.attention.head_count_kv", heads)
        return Shape(
            hidden=hidden,
            layers=values["llama.block_count"],
            heads=heads,
            kv_heads=kv_heads,
            head_dim=tensors["blk.0.attn_k.weight"].shape[0] // kv_heads,
            intermediate=values["llama.feed_forward_length"],
            vocab=vocab,
            tied="output.weight" not in tensors,
        )
    except (KeyError, TypeError, ValueError, IndexError, ZeroDivisionError) as exc:
        what = f"{type(exc).__name__} {exc}"
        raise ToolkitError(f"`{path}` is no whole Llama: {what}", hint="copy or write it again") from None
