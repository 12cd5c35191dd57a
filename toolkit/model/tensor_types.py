"""Which ggml type each tensor of a quantization gets: llama.cpp's choice as a pure function.

Source of the rules: llama.cpp's src/llama-quant.cpp, for dense models.
"""

import re
from collections import Counter
from collections.abc import Mapping
from math import prod

from gguf import GGMLQuantizationType as Type

from toolkit.formats.ggml_types import BASE, FALLBACK, UNQUANTIZED, block_size
from toolkit.model.model_config import ModelConfig

SMALLEST = ("IQ2_M", "IQ2_S", "IQ2_XS", "IQ2_XXS")
# Of which llama.cpp counts the layers; a model may have attn_v in some layers and attn_qkv in the others.
COUNTED = {"attn_v": "attn_v", "attn_qkv": "attn_v", "ffn_down": "ffn_down", "ffn_gate": "ffn_gate", "ffn_up": "ffn_up"}


def tensor_types(
    quantization: str,
    shapes: Mapping[str, tuple[int, ...]],
    model: ModelConfig,
    overrides: Mapping[str, str] | None = None,
    *,
    has_imatrix: bool = False,
) -> dict[str, tuple[Type, bool]]:
    """Return each tensor's type, and whether it is a fallback because its rows do not divide into blocks.

    `shapes` are the (out, in) of GGUF names, layers in ascending order; `overrides` map regular expressions, searched
    in the names, to types: the first that matches wins, in files of a quantized type only. llama.cpp's
    layer number counts the tensors of that kind that came before; those that are overridden do not count.
    """
    base = BASE[quantization][0]
    wanted = [(re.compile(pattern), Type[kind]) for pattern, kind in (overrides or {}).items()]
    seen: Counter[str] = Counter()
    types = {}
    for name, shape in shapes.items():
        if not is_matrix(name, shape):
            types[name] = Type.F32, False
        elif base in UNQUANTIZED:
            types[name] = base, False
        else:
            part = name.split(".")[-2]
            kind = next((kind for pattern, kind in wanted if pattern.search(name)), None)
            if kind is None:
                counted = COUNTED.get(part, "")
                kind = _mixture(quantization, part, shape[-1], seen[counted], model, has_imatrix)
                seen[counted] += 1
            types[name] = _fitting(kind, shape[-1])
    return types


def _fitting(kind: Type, columns: int) -> tuple[Type, bool]:
    if columns % block_size(kind) == 0:
        return kind, False
    fallback = FALLBACK.get(kind, kind)
    return (Type.F16 if columns % block_size(fallback) else fallback), True


def is_matrix(name: str, shape: tuple[int, ...]) -> bool:
    """Tell whether a tensor is quantized: ggml does not count a dimension of 1, so a matrix of one row is a vector."""
    plain = name.endswith("weight") and not name.endswith(("_norm.weight", "ssm_conv1d.weight"))
    return len(shape) >= 2 and prod(shape[:-1]) > 1 and plain


def _mixture(quantization: str, part: str, columns: int, layer: int, model: ModelConfig, has_imatrix: bool) -> Type:
    """Return the type before fallbacks of one part of a layer, of the embedding (token_embd) or the head (output)."""
    base = BASE[quantization][0]
    if part == "output" or (part == "token_embd" and model.tied):
        return _head(quantization, base, columns)
    if part == "token_embd":
        return {"IQ2_XXS": Type.Q2_K, "IQ2_XS": Type.Q2_K, "IQ2_S": Type.IQ3_S, "IQ2_M": Type.IQ3_S,
                "IQ3_XXS": Type.IQ3_S}.get(quantization, base)  # fmt: skip
    if quantization in SMALLEST:
        return _smallest(quantization, base, part, layer, model)
    if part in ("attn_v", "attn_qkv"):
        return _attention_values(quantization, base, layer, model, has_imatrix)
    if part == "ffn_down":
        return _feed_forward_down(quantization, base, layer, model.layers, has_imatrix)
    if part == "attn_output":
        return {"Q2_K": Type.Q3_K, "IQ3_XXS": Type.IQ3_S, "Q3_K_M": Type.Q4_K, "Q3_K_L": Type.Q5_K,
                "IQ3_M": Type.Q4_K}.get(quantization, base)  # fmt: skip
    if part in ("attn_q", "attn_k") and quantization == "IQ3_XXS":
        return Type.IQ2_S
    return base


def _head(quantization: str, base: Type, columns: int) -> Type:
    if base == Type.Q8_0 or columns % block_size(base):
        return Type.Q8_0
    return Type.Q5_K if quantization in (*SMALLEST, "IQ3_XXS") else Type.Q6_K


def _smallest(quantization: str, base: Type, part: str, layer: int, model: ModelConfig) -> Type:
    better = Type.IQ3_S if quantization in ("IQ2_S", "IQ2_M") else Type.Q2_K
    if part in ("attn_v", "attn_qkv"):
        return Type.Q4_K if model.heads // model.kv_heads >= 4 else better
    if part == "ffn_down":
        return better if layer < model.layers // 8 else base
    return Type.IQ3_S if part == "attn_output" and better == Type.IQ3_S else base


def _attention_values(quantization: str, base: Type, layer: int, model: ModelConfig, has_imatrix: bool) -> Type:
    grouping = model.heads // model.kv_heads
    kind = base
    if quantization == "Q2_K":
        kind = Type.Q4_K if grouping >= 4 else Type.Q3_K
    elif quantization == "IQ3_XXS":
        kind = Type.Q4_K if grouping >= 4 else Type.IQ3_XXS if has_imatrix else Type.IQ3_S
    elif quantization == "IQ3_M" or (quantization == "IQ3_S" and grouping >= 4):
        kind = Type.Q4_K
    elif quantization == "Q3_K_M":
        kind = Type.Q5_K if layer < 2 else Type.Q4_K
    elif quantization == "Q3_K_L" or (quantization in ("IQ4_NL", "IQ4_XS") and grouping >= 4):
        kind = Type.Q5_K
    elif quantization in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, model.layers):
        kind = Type.Q6_K
    elif quantization == "Q4_K_S" and layer < 4:
        kind = Type.Q5_K
    of_70b = model.layers == 80 and (model.architecture == "qwen2" or (model.architecture == "llama" and grouping > 1))
    return Type.Q5_K if of_70b and kind in (Type.Q3_K, Type.Q4_K) else kind


def _feed_forward_down(quantization: str, base: Type, layer: int, layers: int, has_imatrix: bool) -> Type:
    first = layer < layers // 8
    if quantization == "Q2_K":
        return Type.Q3_K
    if quantization == "IQ3_XXS" and not has_imatrix:
        return Type.Q4_K if first else Type.Q3_K
    if quantization == "Q3_K_M":
        return Type.Q5_K if layer < layers // 16 else Type.Q4_K
    if quantization == "Q3_K_L":
        return Type.Q5_K
    if quantization in ("Q4_K_M", "Q5_K_M") and _more_bits(layer, layers):
        return Type.Q6_K
    if first and (quantization == "Q4_K_S" or (quantization in ("IQ4_NL", "IQ4_XS") and not has_imatrix)):
        return Type.Q5_K
    if first and has_imatrix and quantization in ("Q4_0", "Q5_0"):
        return Type.Q4_1 if quantization == "Q4_0" else Type.Q5_1
    return Type.Q4_K if first and quantization == "IQ3_M" else base


def _more_bits(layer: int, layers: int) -> bool:
    """The first and last eighth of the layers, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
