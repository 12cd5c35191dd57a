"""The config.json of a base that is a GGUF file, from its header; every count is checked against the file's tensors."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import ToolkitError
from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_reader import GgufData, open_gguf, read_values
from toolkit.formats.names import visible
from toolkit.model.config_values import Values, brief, count, real
from toolkit.model.families import FAMILIES
from toolkit.model.families.checks import layers_in
from toolkit.model.families.family import Family, GgufHeader
from toolkit.model.families.scaling import stated_rope
from toolkit.model.model_config import MOST_LAYERS, ModelConfig, sizes

Shapes = Mapping[str, tuple[int, ...]]
EMBEDDING, OUTPUT = "token_embd.weight", "output.weight"
# Each of these is the size of one of the file's own tensors.
WIDTHS = (
    "embedding_length", "feed_forward_length", "vocab_size", "rope.dimension_count", "attention.head_count",
    "attention.head_count_kv", "attention.key_length", "attention.value_length",
)  # fmt: skip
REALS = ("rope.freq_base", "attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon")
TURNED_PARTLY = ("phi3", "qwen35")  # a part of each head is turned
# Tensors that the model's sizes do not lead to: factors of rotary frequencies, which config.json states.
FACTORS = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")


def gguf_config(path: Path) -> ModelConfig | None:
    """Read the sizes from a GGUF file's header; None for an architecture that cannot be exported.

    Raises ToolkitError for a file that is damaged, or whose header and tensors contradict each other.
    """
    found = read_base(path)
    return found[2] if found else None


def read_base(path: Path, opened: GgufData | None = None) -> tuple[dict[str, Any], Family, ModelConfig] | None:
    """Return what a GGUF base's config.json says, its family and its sizes; raises what `gguf_config` raises."""
    found = opened or open_gguf(path)
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    try:
        name = found.metadata.get("general.architecture")
        if not isinstance(name, str) or not re.fullmatch(r"[a-z0-9._-]{1,40}", name):
            raise ValueError(f"no valid `general.architecture`: {brief(name)}")
        reader = next((each.stated for each in FAMILIES.values() if each.architecture == name and each.stated), None)
        if reader is None or found.metadata.get(f"{name}.expert_count"):
            return None
        _check_counts(name, found.metadata, shapes)
        header = _header(name, found, path)
        config = {**_shared(name, header), **reader(header)}
        family = FAMILIES[config["architectures"][0]]
        small = sizes(config)
        assert small is not None
        model = family.model(config, small)
        _check_tensors(family, model, shapes)
    except ValueError as exc:
        raise ToolkitError(f"`{path}` is not a complete model: {exc}", hint="copy or write it again") from None
    return config, family, model


def _header(name: str, found: GgufData, path: Path) -> GgufHeader:
    def numbers(tensor: str) -> Floats:
        return read_values(path, found.tensors[tensor])

    start = f"{name}."
    values = {
        key.removeprefix(start): _shortest(value) for key, value in found.metadata.items() if key.startswith(start)
    }
    shapes = {name: tensor.shape for name, tensor in found.tensors.items()}
    ids = {key: value for key, value in found.metadata.items() if key.endswith("_token_id")}
    return GgufHeader({**values, **ids}, shapes, numbers)


def _shortest(value: Any) -> Any:
    """Return a number of float32 as the shortest decimal that is rounded to it: it was one before it was written."""
    return float(str(np.float32(value))) if isinstance(value, float) else value


def _check_counts(name: str, values: Values, shapes: Shapes) -> None:
    """Raise ValueError for a count that does not match the file's tensors."""
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
    """Raise ValueError for a width, or a list of one per layer, that no tensor has."""
    stated = values.get(key)
    largest = max(max(shape, default=0) for shape in shapes.values())
    least = 1 if "head_count" in key else 0
    for one in stated if isinstance(stated, list) else [] if stated is None else [stated]:
        if type(one) is not int or not least <= one <= largest:
            raise ValueError(f"no valid `{key}`: {brief(one)}, a whole number from {least} to {largest} is needed")


def _shared(name: str, header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says in the same words for every family."""
    values, shapes = header.values, header.shapes
    vocab, hidden = _matrix(shapes, EMBEDDING)
    heads = _number(values, "attention.head_count", name)
    kv_heads = _number(values, "attention.head_count_kv", name, heads)
    head_dim = _number(values, "attention.key_length", name, hidden // heads)
    if "blk.0.attn_k.weight" in shapes:
        rows, _ = _matrix(shapes, "blk.0.attn_k.weight")
        head_dim = _number(values, "attention.key_length", name, rows // kv_heads)
        if rows % kv_heads or heads % kv_heads:
            raise ValueError(f"`{name}.attention.head_count` {heads} and `{name}.attention.head_count_kv` {kv_heads} "
                             f"do not fit `blk.0.attn_k.weight` with {rows} rows")  # fmt: skip
    turned = count(values, "rope.dimension_count", head_dim)
    if name not in TURNED_PARTLY and turned != head_dim:
        raise ValueError(f"`{name}.rope.dimension_count` is {turned}, but heads have {head_dim}")
    config = {
        "hidden_size": hidden,
        "intermediate_size": _number(values, "feed_forward_length", name),
        "num_hidden_layers": count(values, "block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "vocab_size": vocab,
        "tie_word_embeddings": OUTPUT not in shapes,
        "hidden_act": "silu",
        "attention_bias": "blk.0.attn_q.bias" in shapes,
        "mlp_bias": "blk.0.ffn_gate.bias" in shapes,
        "rope_parameters": stated_rope(values),
    }
    if values.get("context_length") is not None:
        config["max_position_embeddings"] = _number(values, "context_length", name)
    if values.get("attention.layer_norm_rms_epsilon") is not None:
        config["rms_norm_eps"] = values["attention.layer_norm_rms_epsilon"]
    for token in ("bos", "eos", "padding"):
        index = values.get(f"tokenizer.ggml.{token}_token_id")
        config[f"{token.removesuffix('ding')}_token_id"] = index if type(index) is int and index < vocab else None
    return config


def _number(values: Values, key: str, name: str, default: int | None = None) -> int:
    """Return a whole number, or that of all layers where the header has one for each; raises ValueError."""
    stated = values.get(key)
    if isinstance(stated, list) and stated and set(map(str, stated)) == {str(stated[0])}:
        stated = stated[0]
    full = f"{name}.{key}"
    return count({full: stated}, full, default)


def _check_tensors(family: Family, model: ModelConfig, shapes: Shapes) -> None:
    """Raise ValueError unless the file's tensors are those that its header leads to."""
    places = {layout.name: layout.shape for layout in family.layouts(model)}
    for name, wanted in places.items():
        shape = shapes.get(name)
        if shape != wanted:
            there_is = "is missing" if shape is None else f"has the shape {list(shape)}"
            raise ValueError(f"tensor `{name}` {there_is}, but its header says {list(wanted)}")
    unknown = [name for name in shapes if name not in places and name not in FACTORS]
    if unknown:
        raise ValueError(f"tensor `{visible(unknown[0])}` has no place in a model of its architecture")


def _matrix(shapes: Shapes, name: str) -> tuple[int, int]:
    """Return rows and columns of a tensor; raises ValueError if it is absent, empty or not a matrix."""
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it has no tensor `{name}`")
    if len(shape) != 2 or not all(shape):
        raise ValueError(f"tensor `{name}` has the shape {list(shape)}, but a matrix is needed")
    return shape[0], shape[1]
