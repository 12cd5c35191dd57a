"""The sizes of a base that is a GGUF file, from its header; every count is held to the file's own tensors."""

from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import GgufData, open_gguf
from toolkit.model.config_values import count
from toolkit.model.families.checks import layers_in
from toolkit.model.families.llama import llama_layouts
from toolkit.model.model_config import MOST_LAYERS, ModelConfig

EMBEDDING = "token_embd.weight"


def gguf_config(path: Path) -> ModelConfig | None:
    """Read the sizes from a GGUF file's header; None for another architecture than a dense Llama's.

    Raises ToolkitError for a file that is damaged, or whose header and tensors contradict each other.
    """
    found = open_gguf(path)
    if found.metadata.get("general.architecture") != "llama" or found.metadata.get("llama.expert_count"):
        return None
    try:
        return _sizes(found)
    except ValueError as exc:
        raise ToolkitError(f"`{path}` is no whole Llama: {exc}", hint="copy or write it again") from None


def _sizes(found: GgufData) -> ModelConfig:
    values, shapes = found.metadata, {name: tensor.shape for name, tensor in found.tensors.items()}
    layers = count(values, "llama.block_count", most=MOST_LAYERS)
    there = layers_in(shapes)
    if layers != there:
        raise ValueError(f"`llama.block_count` is {layers}, its tensors have {there} layers")
    vocab, hidden = _matrix(shapes, EMBEDDING)
    heads = count(values, "llama.attention.head_count")
    kv_heads = count(values, "llama.attention.head_count_kv", heads)
    rows, _ = _matrix(shapes, "blk.0.attn_k.weight")
    if rows % kv_heads or heads % kv_heads:
        raise ValueError(f"`llama.attention.head_count` {heads} and `llama.attention.head_count_kv` {kv_heads} "
                         f"do not fit `blk.0.attn_k.weight` with {rows} rows")  # fmt: skip
    model = ModelConfig(
        hidden=hidden,
        layers=layers,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=rows // kv_heads,
        intermediate=count(values, "llama.feed_forward_length"),
        vocab=vocab,
        tied="output.weight" not in shapes,
    )
    for layout in llama_layouts(model):
        shape = shapes.get(layout.name)
        if shape != layout.shape:
            there_is = "is missing" if shape is None else f"has the shape {list(shape)}"
            raise ValueError(f"tensor `{layout.name}` {there_is}, its header says {list(layout.shape)}")
    return model


def _matrix(shapes: dict[str, tuple[int, ...]], name: str) -> tuple[int, int]:
    """Return rows and columns of a tensor; raises ValueError where it is absent, empty or no matrix."""
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it has no tensor `{name}`")
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"tensor `{name}` has the shape {list(shape)}, a matrix is needed")
    return shape[0], shape[1]
