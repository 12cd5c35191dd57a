"""The description of a family: the place of each tensor, and the model's metadata in a GGUF file."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from gguf import GGUFValueType

from toolkit.formats.checkpoint import Floats, Rows
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, real
from toolkit.model.model_config import ModelConfig

Matrix = TypeVar("Matrix", Floats, npt.NDArray[np.uint16], Rows)

COUNT, REAL, TEXT = GGUFValueType.UINT32, GGUFValueType.FLOAT32, GGUFValueType.STRING


@dataclass(frozen=True)
class GgufHeader:
    """The header of a GGUF file that is a base: its keys without the architecture in front, and its tensors' shapes.

    `numbers` returns the values of one tensor, in float32; raises ToolkitError where they cannot be read.
    """

    values: Values
    shapes: Mapping[str, tuple[int, ...]]
    numbers: Callable[[str], Floats]


@dataclass(frozen=True)
class HeadOrder:
    """Another order of value heads: key head by key head in a checkpoint, the first of every key head first in GGUF.

    The rows from `first` on (columns if `columns`) are `keys` * `each` heads of `size` rows.
    """

    keys: int
    each: int
    size: int
    first: int = 0
    columns: bool = False

    def applied(self, values: Matrix, *, back: bool = False) -> Matrix:
        """Return rows or columns in GGUF's order, or `back` in the checkpoint's."""
        groups = (self.each, self.keys, self.size) if back else (self.keys, self.each, self.size)
        heads = self.first + np.arange(self.keys * self.each * self.size).reshape(groups).swapaxes(0, 1).ravel()
        return values.take(np.concatenate([np.arange(self.first), heads]), axis=1 if self.columns else 0)


@dataclass(frozen=True)
class Layout:
    """One tensor's place: its name in the checkpoint and in GGUF, its shape (out, in), and how its values are written.

    `heads` > 0: rows of each head go from rotate-half order to interleaved order, as ggml's rotary embedding expects.
    `order` is that of linear attention's value heads. `offset` is added to every value: Gemma computes with 1 + weight,
    ggml with the weight. `decay`: the checkpoint has the logarithm of what GGUF has with a minus. `of` > 0: these are
    the rows from `first` on of a tensor that has `of` rows. `between`: the checkpoint has a dimension of 1 after the
    first one.
    """

    source: str
    name: str
    shape: tuple[int, ...]
    heads: int = 0
    offset: float = 0.0
    first: int = 0
    of: int = 0
    order: HeadOrder | None = None
    decay: bool = False
    between: bool = False

    @property
    def stored_shape(self) -> tuple[int, ...]:
        """The shape of the whole tensor in the checkpoint."""
        rows, rest = self.of or self.shape[0], self.shape[1:]
        return (rows, 1, *rest) if self.between else (rows, *rest)

    @property
    def by_blocks(self) -> bool:
        """Whether a block of rows can be laid out without the others."""
        return not (self.offset or self.order or self.decay or self.between)

    @property
    def copied(self) -> bool:
        """Whether the laid out values are a second copy."""
        return bool(self.heads) or not self.by_blocks


@dataclass(frozen=True)
class Family:
    """What is special to one architecture.

    `architecture` is llama.cpp's name. `model` completes the sizes by the rest of config.json; it raises ValueError for
    what llama.cpp computes differently. `ignored` are name endings of tensors that are not weights, `left_out` the
    beginnings of those that no model of text computes with. `special_by_flag`:
    llama.cpp's converter decides by its flag alone that an added token is a control token, not also by its text.
    `stated` returns what config.json says of a base that is a GGUF file, besides what all families share: its class in
    `architectures`, and what differs; it may raise ValueError. Without it no GGUF file of the family is a base.
    """

    architecture: str
    model: Callable[[Values, ModelConfig], ModelConfig]
    layouts: Callable[[ModelConfig], list[Layout]]
    computed: Callable[[ModelConfig], dict[str, Floats]]
    metadata: Callable[[ModelConfig], Metadata]
    ignored: tuple[str, ...] = ("rotary_emb.inv_freq",)
    left_out: tuple[str, ...] = ()
    special_by_flag: bool = False
    stated: Callable[[GgufHeader], dict[str, Any]] | None = None


def to_ggml_layout(values: Matrix, layout: Layout) -> Matrix:
    """Return a tensor in ggml's layout, as `layout` says; an offset is added in float32.

    Heads go from (2, half) to (half, 2). The exponential is torch's, which numpy does not match to the bit.
    """
    if layout.between:
        values = values.reshape(values.shape[0], *values.shape[2:])
    if layout.decay:
        values = _decay(values)  # type: ignore[assignment,arg-type]
    if layout.order:
        values = layout.order.applied(values)
    if layout.offset:
        values = values + np.float32(layout.offset)  # type: ignore[assignment]
    if not layout.heads:
        return values
    halves = values.reshape(layout.heads, 2, values.shape[0] // layout.heads // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)  # type: ignore[return-value]


def from_ggml_layout(values: Floats, layout: Layout) -> Floats:
    """Return a tensor as the checkpoint has it: what `to_ggml_layout` does is undone."""
    if layout.order:
        values = layout.order.applied(values, back=True)
    if layout.decay:
        values = _logarithm(values)
    if layout.between:
        values = values.reshape(layout.stored_shape)
    if layout.heads:
        halves = values.reshape(layout.heads, values.shape[0] // layout.heads // 2, 2, *values.shape[1:])
        values = np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)
    return values - np.float32(layout.offset) if layout.offset else values


def _decay(values: Floats) -> Floats:
    import torch

    found: Floats = -torch.exp(torch.from_numpy(np.ascontiguousarray(values))).numpy()
    return found


def _logarithm(values: Floats) -> Floats:
    """Undo `_decay`: of the numbers around the logarithm, the first that gives the value to the bit, if one does."""
    near = np.log(-values.astype(np.float64)).astype(np.float32)
    found = near.copy()
    for step in (2, -2, 1, -1, 0):
        other = near
        for _ in range(abs(step)):
            other = np.nextafter(other, np.float32(np.copysign(np.inf, step)))
        found = np.where(_decay(other) == values, other, found)
    return found


def rope(config: Values, kinds: dict[str, tuple[str, ...]], theta: float = 10000.0) -> tuple[float, dict[str, Any]]:
    """Return rotary base and scaling: {} for none, else its `type` and the numbers that `kinds` names for that type.

    Reads both forms in config.json: `rope_parameters` (transformers 5) and `rope_scaling`; `theta` is the base where
    none is stated.
    """
    stated = rope_parameters(config)
    theta = real(stated, "rope_theta", real(config, "rope_theta", theta))
    kind = stated.get("rope_type", stated.get("type", "default"))
    kind = "longrope" if kind == "su" else kind  # its name in the first Phi-3 files
    if kind == "default":
        return theta, {}
    if not isinstance(kind, str) or kind not in kinds:
        known = ", ".join(["default", *kinds])
        raise ValueError(f"rope scaling {brief(kind)} cannot be exported; supported: {known}")
    return theta, {"type": kind, **{key: real(stated, key) for key in kinds[kind]}}


def rope_parameters(config: Values) -> dict[str, Any]:
    """Return config.json's rotary embedding, {} if there is none; raises ValueError for anything but an object."""
    stated = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(stated, dict):
        key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
        raise ValueError(f"no valid rope parameters: `{key}` is {brief(stated)}")
    return stated


def expect_layer_types(config: Values, wanted: list[str]) -> None:
    """Raise ValueError unless the layers, if config.json lists them, are of the kinds that llama.cpp computes."""
    stated = config.get("layer_types")
    if stated is None or stated == []:
        return
    if isinstance(stated, list) and len(stated) != len(wanted):
        raise ValueError(f"`layer_types` lists {len(stated):,} layers, but `num_hidden_layers` is {len(wanted):,}")
    if stated != wanted:
        raise ValueError(f"`layer_types` is {brief(stated)}, but llama.cpp supports only {brief(wanted)}")


def described(model: ModelConfig, keys: str) -> Metadata:
    """Return the key-value pairs named in `keys`, each under the architecture's prefix, from the model's sizes."""
    known = {
        "block_count": (model.layers, COUNT),
        "context_length": (model.context, COUNT),
        "embedding_length": (model.hidden, COUNT),
        "feed_forward_length": (model.intermediate, COUNT),
        "attention.head_count": (model.heads, COUNT),
        "attention.head_count_kv": (model.kv_heads, COUNT),
        "rope.freq_base": (model.rope_theta, REAL),
        "rope.freq_base_swa": (model.rope.get("local"), REAL),
        "attention.layer_norm_rms_epsilon": (model.norm_epsilon, REAL),
        "attention.key_length": (model.head_dim, COUNT),
        "attention.value_length": (model.head_dim, COUNT),
        "vocab_size": (model.vocab, COUNT),
        "rope.dimension_count": (model.head_dim, COUNT),
        "attention.sliding_window": (model.window, COUNT),
        "attn_logit_softcapping": (model.attention_cap, REAL),
        "final_logit_softcapping": (model.output_cap, REAL),
    }
    return {f"{model.architecture}.{key}": known[key] for key in keys.split()}


def without_window(window: int) -> str:
    """Say what changes because llama.cpp computes a model without its sliding window."""
    return f"its sliding window: beyond {window} tokens it attends to more than it was trained to"


def nothing_computed(model: ModelConfig) -> dict[str, Floats]:
    """Return no tensors: the checkpoint has them all."""
    return {}
