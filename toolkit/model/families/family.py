"""What every family is described with: a model's shape, the place of each tensor, what config.json states of both."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType

from toolkit.formats.checkpoint import Floats, Rows
from toolkit.formats.gguf_writer import Metadata

Matrix = TypeVar("Matrix", Floats, npt.NDArray[np.uint16], Rows)

COUNT, REAL, TEXT = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING


@dataclass(frozen=True)
class ModelConfig:
    """A model's shape, as its config.json states it. `rope` is empty where rotary frequencies are not scaled.

    `window` is the sliding window of attention in tokens, 0 for none; `attention_cap` and `output_cap` are the soft
    caps of logits, 0 for none. `ignored` says what llama.cpp leaves out of the model, for a warning.
    """

    architecture: str
    layers: int
    hidden: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    vocabulary: int
    context: int
    norm_epsilon: float
    rope_theta: float
    rope: dict[str, Any]
    tied: bool
    attention_bias: bool = False
    mlp_bias: bool = False
    window: int = 0
    attention_cap: float = 0.0
    output_cap: float = 0.0
    ignored: str = field(default="", compare=False)


@dataclass(frozen=True)
class Layout:
    """One tensor's place: its name in the checkpoint and in GGUF, its shape (out, in), and how its values are written.

    `heads` > 0: rows of each head go from rotate-half order to interleaved order, as ggml's rotary embedding expects.
    `offset` is added to every value: Gemma computes with 1 + weight, ggml with the weight.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0


@dataclass(frozen=True)
class Family:
    """What one architecture does in its own way.

    `ignored` are name endings of tensors that are not weights. `special_by_flag`: llama.cpp's converter takes an added
    token for a control token by its flag alone, not by its looks as well.
    """

    model: Callable[[dict[str, Any]], ModelConfig]
    layouts: Callable[[ModelConfig], list[Layout]]
    computed: Callable[[ModelConfig], dict[str, Floats]]
    metadata: Callable[[ModelConfig], Metadata]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    special_by_flag: bool = False


def to_ggml_layout(values: Matrix, layout: Layout) -> Matrix:
    """Return a tensor as ggml has it: row order per head from (2, half) to (half, 2), the offset added in float32."""
    if layout.offset:
        values = values + np.float32(layout.offset)  # type: ignore[assignment]
    if not layout.heads:
        return values
    halves = values.reshape(layout.heads, 2, values.shape[0] // layout.heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)  # type: ignore[return-value]


def count(config: dict[str, Any], key: str, default: int | None = None) -> int:
    """Return a positive integer of config.json; raises KeyError or ValueError."""
    value = config.get(key)
    if value is None and default is not None:
        return default
    if value is None:
        raise KeyError(key)
    if type(value) is not int or value < 1:
        raise ValueError(f"no valid `{key}`: {value!r}")
    return value


def real(config: dict[str, Any], key: str, default: float | None = None) -> float:
    """Return a positive number of config.json; raises KeyError or ValueError."""
    value = config.get(key, default)
    if value is None:
        raise KeyError(key)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise ValueError(f"no valid `{key}`: {value!r}")
    return float(value)


def expect(config: dict[str, Any], key: str, value: Any) -> None:
    """Raise ValueError if config.json states anything but the one value that llama.cpp computes with."""
    if config.get(key, value) != value:
        raise ValueError(f"`{key}` {config[key]!r}, llama.cpp computes with {value!r} only")


def shape(
    architecture: str, config: dict[str, Any], *, tied: bool = False, norm_epsilon: float = 1e-6
) -> dict[str, Any]:
    """Return the fields of Model that all families name alike; `tied` and `norm_epsilon` are transformers' defaults.

    Raises KeyError or ValueError for what is absent or cannot be.
    """
    heads, hidden = count(config, "num_attention_heads"), count(config, "hidden_size")
    kv_heads = count(config, "num_key_value_heads", heads)
    head_size = count(config, "head_dim", hidden // heads)
    if heads % kv_heads or head_size % 2:
        raise ValueError(f"{heads} heads of {head_size} on {kv_heads} key-value heads")
    return {
        "architecture": architecture,
        "layers": count(config, "num_hidden_layers"),
        "hidden": hidden,
        "feed_forward": count(config, "intermediate_size"),
        "heads": heads,
        "kv_heads": kv_heads,
        "head_size": head_size,
        "vocabulary": count(config, "vocab_size"),
        "context": count(config, "max_position_embeddings"),
        "norm_epsilon": real(config, "rms_norm_eps", norm_epsilon),
        "tied": bool(config.get("tie_word_embeddings", tied)),
    }


def rope(config: dict[str, Any], kinds: dict[str, tuple[str, ...]]) -> tuple[float, dict[str, Any]]:
    """Return rotary base and scaling: {} for none, else its `type` and the numbers that `kinds` names for that type.

    Reads both ways that config.json states them: `rope_parameters` (transformers 5) and `rope_scaling`.
    """
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        raise ValueError(f"no valid rope parameters: {stated!r}")
    theta = real(stated, "rope_theta", config.get("rope_theta", 10000.0))
    kind = stated.get("rope_type", stated.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name in the first Phi-3 files
    if kind == "default":
        return theta, {}
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(["default", *kinds])
        raise ValueError(f"rope scaling {kind!r}, which cannot be exported; known: {known}")
    return theta, {"type": kind, **{key: real(stated, key) for key in kinds[kind]}}


def described(model: ModelConfig, keys: str) -> Metadata:
    """Return the key-value pairs named in `keys`, each under the architecture's prefix, from the model's shape."""
    known = {
        "block_count": (model.layers, COUNT),
        "context_length": (model.context, COUNT),
        "embedding_length": (model.hidden, COUNT),
        "feed_forward_length": (model.feed_forward, COUNT),
        "attention.head_count": (model.heads, COUNT),
        "attention.head_count_kv": (model.kv_heads, COUNT),
        "rope.freq_base": (model.rope_theta, REAL),
        "attention.layer_norm_rms_epsilon": (model.norm_epsilon, REAL),
        "attention.key_length": (model.head_size, COUNT),
        "attention.value_length": (model.head_size, COUNT),
        "vocab_size": (model.vocabulary, COUNT),
        "rope.dimension_count": (model.head_size, COUNT),
        "attention.sliding_window": (model.window, COUNT),
        "attn_logit_softcapping": (model.attention_cap, REAL),
        "final_logit_softcapping": (model.output_cap, REAL),
    }
    return {f"{model.architecture}.{key}": known[key] for key in keys.split()}


def without_window(window: int) -> str:
    """Say what it means that llama.cpp computes a model without its sliding window."""
    return f"its sliding window: beyond {window} tokens it attends to more than it was trained to"


def nothing_computed(model: ModelConfig) -> dict[str, Floats]:
    """Return no tensors: those of the checkpoint are all there are."""
    return {}
