"""The sizes of a base that is a GGUF file, from its header; every count is checked against the file's own tensors."""

import re
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import open_gguf
from toolkit.model.config_values import Values, brief, count, real
from toolkit.model.families.checks import layers_in
from toolkit.model.families.llama import llama_layouts
from toolkit.model.model_config import MOST_LAYERS, ModelConfig

Shapes = dict[str, tuple[int, ...]]
EMBEDDING = "token_embd.weight"
# The sizes of transformers' tensors when it reads a GGUF file: each is the size of one of the file's own.
WIDTHS = (
    "embedding_length", "feed_forward_length", "expert_feed_forward_length", "vocab_size", "rope.dimension_count",
    "attention.head_count", "attention.head_count_kv", "attention.key_length", "attention.value_length", "expert_count",
    "ssm.inner_size", "ssm.state_size", "ssm.conv_kernel", "ssm.time_step_rank", "shortconv.l_cache",
)  # fmt: skip
REALS = ("rope.freq_base", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")


def gguf_config(path: Path) -> ModelConfig | None:
    """Read the sizes from a GGUF file's header; None for any architecture but a dense Llama's.

    Raises ToolkitError for a file that is damaged, or whose header and tensors contradict each other.
    """
    found = open_gguf(path)
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    try:
        name = found.metadata.get("general.architecture")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9._-]{1,40}", name):
            raise ValueError(f"no valid `general.architecture`: {brief(name)}")
        _check_counts(name, found.metadata, shapes)
        return (
            _sizes(found.metadata, shapes) if name == "llama" and not found.metadata.get("llama.expert_count") else None
        )
    except ValueError as exc:
        raise ToolkitError(f"`{path}` is not a complete model: {exc}", hint="copy or write it again") from None


def _check_counts(name: str, values: Values, shapes: Shapes) -> None:
    """Raise ValueError for a count that does not match the file's tensors, for any architecture."""
    layers, there = count(values, f"{name}.block_count", most=MOST_LAYERS), layers_in(shapes)
    if layers != there:
        raise ValueError(f"`{name}.block_count` is {layers}, but its tensors have {there} layers")
    rows, hidden = _matrix(shapes, EMBEDDING)
    for width in WIDTHS:
        _check_width(f"{name}.{width}", values, shapes)
    exact = {"embedding_length": hidden, "vocab_size": rows}
    for key, size in exact.items():
        if count(values, f"{name}.{key}", size) != size:
            stated = values[f"{name}.{key}"]
            raise ValueError(f"`{name}.{key}` is {stated}, but `{EMBEDDING}` has {rows} rows of {hidden}")
    for key in (f"{name}.{real_key}" for real_key in REALS):
        real(values, key, 1.0)


def _check_width(key: str, values: Values, shapes: Shapes) -> None:
    """Raise ValueError for a width, or a list of one per layer, that no tensor has; models without attention have 0."""
    stated = values.get(key)
    largest = max(max(shape, default=0) for shape in shapes.values())
    attends = "head_count" in key and any(".attn_" in name for name in shapes)
    least = 1 if attends and not isinstance(stated, list) else 0
    for one in stated if isinstance(stated, list) else [] if stated is None else [stated]:
        if type(one) is not int or not least <= one <= largest:
            raise ValueError(f"no valid `{key}`: {brief(one)}, a whole number from {least} to {largest} is needed")


def _sizes(values: Values, shapes: Shapes) -> ModelConfig:
    vocab, hidden = _matrix(shapes, EMBEDDING)
    heads = count(values, "llama.attention.head_count")
    kv_heads = count(values, "llama.attention.head_count_kv", heads)
    rows, _ = _matrix(shapes, "blk.0.attn_k.weight")
    head_dim = rows // kv_heads
    if rows % kv_heads or heads % kv_heads:
        raise ValueError(f"`llama.attention.head_count` {heads} and `llama.attention.head_count_kv` {kv_heads} "
                         f"do not fit `blk.0.attn_k.weight` with {rows} rows")  # fmt: skip
    if count(values, "llama.rope.dimension_count", head_dim) != head_dim:
        raise ValueError(
            f"`llama.rope.dimension_count` is {values['llama.rope.dimension_count']}, but heads have {head_dim}"
        )
    model = ModelConfig(
        hidden=hidden,
        layers=count(values, "llama.block_count"),
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        intermediate=count(values, "llama.feed_forward_length"),
        vocab=vocab,
        tied="output.weight" not in shapes,
    )
    for layout in llama_layouts(model):
        shape = shapes.get(layout.name)
        if shape != layout.shape:
            there_is = "is missing" if shape is None else f"has the shape {list(shape)}"
            raise ValueError(f"tensor `{layout.name}` {there_is}, but its header says {list(layout.shape)}")
    return model


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """Return rows and columns of a tensor; raises ValueError if it is absent, empty or not a matrix."""
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it has no tensor `{name}`")
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"tensor `{name}` has the shape {list(shape)}, but a matrix is needed")
    return shape[0], shape[1]
