"""The sizes of a base model, read once: config.json → ModelConfig, and counts computed from it."""

from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.formats import bnb_4bit
from toolkit.formats.safetensors_header import read_header
from toolkit.model.config_values import Values, count, flag, real
from toolkit.model.delta_net import DeltaNet, delta_net
from toolkit.model.kinds import model_kind, text_values

CONFIG = "config.json"
WHOLE = "give a folder with a complete base model"
AGAIN = "copy or download the base again"
MOST_LAYERS = 1_000  # no model has a third of it; limits what is computed for each layer
LARGEST_EPSILON = 1.0  # of a norm; models have 1e-6 or 1e-5


@dataclass(frozen=True)
class ModelConfig:
    """A decoder of Llama's kind: its sizes, and how it computes.

    Widths are in elements. `architecture` is llama.cpp's name. `norms` are those of one layer; `fused` says that
    query, key and value are one matrix, and gate and up another (Phi-3); `shared_mlp` that gate and up are one, under
    Granite 4.0's names. `qk_norm`: query and key are normed per
    "head", over the whole "width", or not (""). `gated`: the query's matrix also gives a gate behind attention. `delta`
    are the layers of linear attention. What follows it is known from config.json alone: for a model known only
    by name or GGUF header, it is 0 or empty. `rope` is empty where rotary frequencies are not scaled. `window` is the
    sliding window of attention in tokens, 0 for none; `attention_cap` and `output_cap` are the soft caps of logits, 0
    for none; `scales` are Granite's. `ignored` says what llama.cpp leaves out of the model, for a warning.
    """

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    architecture: str = "llama"
    tied: bool = False
    norms: int = 2
    fused: bool = False
    shared_mlp: bool = False
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    qk_norm: str = ""
    gated: bool = False
    delta: DeltaNet | None = None
    context: int = 0
    norm_epsilon: float = 0.0
    rope_theta: float = 0.0
    rope: dict[str, Any] = field(default_factory=dict)
    window: int = 0
    attention_cap: float = 0.0
    output_cap: float = 0.0
    scales: dict[str, float] = field(default_factory=dict)
    ignored: str = field(default="", compare=False)

    @property
    def query(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def key_value(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def recurrent(self) -> int:
        """The number of layers of linear attention."""
        return sum(self.delta.layers) if self.delta else 0

    @property
    def attending(self) -> int:
        """The number of layers that attend to every token."""
        return self.layers - self.recurrent

    def linears(self) -> dict[str, tuple[int, int]]:
        """Return the linear layers of all kinds of blocks: name → (inputs, outputs)."""
        return {name: size for _, linears in self.blocks() for name, size in linears.items()}

    def blocks(self) -> list[tuple[int, dict[str, tuple[int, int]]]]:
        """Return each kind of block: how many layers are one, and its linear layers."""
        own = self._attention()
        if self.delta is None:
            return [(self.layers, {**own, **self._mlp()})]
        linear = self.delta.linears(self.hidden)
        return [(self.attending, {**own, **self._mlp()}), (self.recurrent, {**linear, **self._mlp()})]

    def _attention(self) -> dict[str, tuple[int, int]]:
        query, key, hidden = self.query, self.key_value, self.hidden
        if self.fused:
            into = {"qkv_proj": (hidden, query + 2 * key)}
        else:
            into = {"q_proj": (hidden, query * (1 + self.gated)), "k_proj": (hidden, key), "v_proj": (hidden, key)}
        return {**into, "o_proj": (query, hidden)}

    def _mlp(self) -> dict[str, tuple[int, int]]:
        hidden, wide = self.hidden, self.intermediate
        if self.shared_mlp:
            return {"input_linear": (hidden, 2 * wide), "output_linear": (wide, hidden)}
        gates = {"gate_proj": (hidden, wide), "up_proj": (hidden, wide)}
        if self.fused:
            gates = {"gate_up_proj": (hidden, 2 * wide)}
        return {**gates, "down_proj": (wide, hidden)}

    def linear_weights(self) -> int:
        """Count the weights of all blocks' linear layers: those that 4-bit loading quantizes."""
        return sum(
            count * sum(inputs * outputs for inputs, outputs in linears.values()) for count, linears in self.blocks()
        )

    def table(self) -> int:
        """Count the weights of the embedding table, the largest tensor (the head has as many)."""
        return self.vocab * self.hidden

    def parameters(self) -> int:
        """Count all parameters; a tied head counts once."""
        biases = (self.query + 2 * self.key_value) * self.qkv_bias + self.hidden * self.output_bias
        biases += (2 * self.intermediate + self.hidden) * self.mlp_bias
        small = self.layers * self.norms * self.hidden + self.attending * (biases + self._qk_norms())
        small += self.recurrent * self.delta.small() if self.delta else 0
        return self.linear_weights() + small + self.hidden + self.table() * (1 if self.tied else 2)

    def _qk_norms(self) -> int:
        """Count the weights that norm query and key in one layer."""
        return {"": 0, "head": 2 * self.head_dim, "width": self.query + self.key_value}[self.qk_norm]

    def trainable(self, targets: list[str], rank: int) -> int:
        """Count the parameters of a LoRA adapter on the named layers: rank × (inputs + outputs) each."""
        count = sum(
            layers * rank * (inputs + outputs)
            for layers, linears in self.blocks()
            for name, (inputs, outputs) in linears.items()
            if name in targets
        )
        ends = sum(name in targets for name in ("lm_head", "embed_tokens"))
        return count + ends * rank * (self.hidden + self.vocab)

    def unknown_targets(self, targets: list[str]) -> list[str]:
        """Return the names among `targets` that no layer of this model has."""
        return [name for name in targets if name not in {*self.linears(), "lm_head", "embed_tokens"}]


def read_config(folder: Path) -> dict[str, Any]:
    """Return what a model folder's config.json holds; raises ToolkitError if it is absent or damaged."""
    return read_json(folder / CONFIG, WHOLE)


def model_config(folder: Path) -> ModelConfig | None:
    """Read the sizes of the model in a folder; None for a model whose layers are not of Llama's kind.

    Raises ToolkitError for a config.json that is absent or damaged, or that has impossible values.
    """
    values = read_config(folder)
    try:
        return sizes(values)
    except ValueError as exc:
        raise unusable(folder, exc) from None


def unusable(folder: Path, exc: ValueError) -> ToolkitError:
    """Return the error for a value of config.json; `exc` names the key."""
    return ToolkitError(f"`{folder / CONFIG}` cannot be used: {exc}", hint=AGAIN)


def sizes(values: Values) -> ModelConfig | None:
    """Read the values that all decoders of Llama's kind share; None for other models.

    Raises ValueError that names the key of an absent or impossible value.
    """
    kind = model_kind(values)
    if kind is None:
        return None
    values = text_values(values)
    heads, hidden = count(values, "num_attention_heads"), count(values, "hidden_size")
    kv_heads = count(values, "num_key_value_heads", heads)
    if heads % kv_heads:
        raise ValueError(f"`num_attention_heads` {heads} is not a multiple of `num_key_value_heads` {kv_heads}")
    head_dim = count(values, "head_dim", kind.head_dim or hidden // heads)
    if head_dim < 2 or head_dim % 2:
        raise ValueError(f"the head size is {head_dim} (`head_dim`, or `hidden_size` / `num_attention_heads`): rotary "
                         "embedding needs an even number")  # fmt: skip
    stated = flag(values, "attention_bias")
    layers = count(values, "num_hidden_layers", most=MOST_LAYERS)
    return ModelConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=count(values, "shared_intermediate_size" if kind.shared_mlp else "intermediate_size"),
        vocab=count(values, "vocab_size"),
        architecture=kind.architecture,
        tied=flag(values, "tie_word_embeddings", kind.tied),
        norms=kind.norms,
        fused=kind.fused,
        shared_mlp=kind.shared_mlp,
        qkv_bias=kind.biases == "qkv" or (kind.biases == "stated" and stated),
        output_bias=kind.biases == "stated" and stated,
        mlp_bias=kind.mlp_bias and flag(values, "mlp_bias"),
        qk_norm=kind.qk_norm,
        gated=kind.delta,
        delta=delta_net(values, layers) if kind.delta else None,
        context=0 if values.get("max_position_embeddings") is None else count(values, "max_position_embeddings"),
        norm_epsilon=real(values, "rms_norm_eps", kind.norm_epsilon, most=LARGEST_EPSILON),
    )


def is_four_bit(folder: Path) -> bool:
    """Tell whether a model folder's config.json states bitsandbytes' 4 bits; raises what `read_config` raises."""
    values = read_config(folder)
    return bool(values.get("quantization_config")) and not bnb_4bit.refused(values)


def stored_parameters(folder: Path) -> int:
    """Count the elements of all safetensors in a folder by their headers; raises ToolkitError for a damaged file."""
    headers = [read_header(path) for path in sorted(folder.glob("*.safetensors"))]
    return sum(prod(tensor.shape) for header in headers for tensor in header.values())
