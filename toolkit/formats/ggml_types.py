"""The quantizations by name, the ggml types that they are made of, and the bytes that those take.

Source: llama.cpp's include/llama.h and src/llama-quant.cpp.
"""

from math import prod

from gguf import GGML_QUANT_SIZES, LlamaFileType
from gguf import GGMLQuantizationType as Type

# Quantization → the type most of its tensors have, and the number that general.file_type holds.
BASE: dict[str, tuple[Type, LlamaFileType]] = {
    "F32": (Type.F32, LlamaFileType.ALL_F32),
    "F16": (Type.F16, LlamaFileType.MOSTLY_F16),
    "BF16": (Type.BF16, LlamaFileType.MOSTLY_BF16),
    "Q8_0": (Type.Q8_0, LlamaFileType.MOSTLY_Q8_0),
    "Q6_K": (Type.Q6_K, LlamaFileType.MOSTLY_Q6_K),
    "Q5_K_M": (Type.Q5_K, LlamaFileType.MOSTLY_Q5_K_M),
    "Q5_K_S": (Type.Q5_K, LlamaFileType.MOSTLY_Q5_K_S),
    "Q5_1": (Type.Q5_1, LlamaFileType.MOSTLY_Q5_1),
    "Q5_0": (Type.Q5_0, LlamaFileType.MOSTLY_Q5_0),
    "Q4_K_M": (Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_M),
    "Q4_K_S": (Type.Q4_K, LlamaFileType.MOSTLY_Q4_K_S),
    "Q4_1": (Type.Q4_1, LlamaFileType.MOSTLY_Q4_1),
    "Q4_0": (Type.Q4_0, LlamaFileType.MOSTLY_Q4_0),
    "IQ4_NL": (Type.IQ4_NL, LlamaFileType.MOSTLY_IQ4_NL),
    "IQ4_XS": (Type.IQ4_XS, LlamaFileType.MOSTLY_IQ4_XS),
    "Q3_K_L": (Type.Q3_K, LlamaFileType.MOSTLY_Q3_K_L),
    "Q3_K_M": (Type.Q3_K, LlamaFileType.MOSTLY_Q3_K_M),
    "Q3_K_S": (Type.Q3_K, LlamaFileType.MOSTLY_Q3_K_S),
    "IQ3_M": (Type.IQ3_S, LlamaFileType.MOSTLY_IQ3_M),
    "IQ3_S": (Type.IQ3_S, LlamaFileType.MOSTLY_IQ3_S),
    "IQ3_XXS": (Type.IQ3_XXS, LlamaFileType.MOSTLY_IQ3_XXS),
    "Q2_K": (Type.Q2_K, LlamaFileType.MOSTLY_Q2_K),
    "IQ2_M": (Type.IQ2_S, LlamaFileType.MOSTLY_IQ2_M),
    "IQ2_S": (Type.IQ2_XS, LlamaFileType.MOSTLY_IQ2_S),
    "IQ2_XS": (Type.IQ2_XS, LlamaFileType.MOSTLY_IQ2_XS),
    "IQ2_XXS": (Type.IQ2_XXS, LlamaFileType.MOSTLY_IQ2_XXS),
}
# For rows that do not divide into blocks of 256; those that do not divide into blocks of 32 either become F16.
FALLBACK = {
    Type.Q6_K: Type.Q8_0,
    Type.Q5_K: Type.Q5_1,
    Type.Q4_K: Type.Q5_0,
    Type.Q3_K: Type.Q4_0,
    Type.Q2_K: Type.Q4_0,
    **dict.fromkeys((Type.IQ4_XS, Type.IQ3_S, Type.IQ3_XXS, Type.IQ2_S, Type.IQ2_XS, Type.IQ2_XXS), Type.IQ4_NL),
}
UNQUANTIZED = (Type.F32, Type.F16, Type.BF16)
KNOWN = {kind for kind, _ in BASE.values()} | set(FALLBACK) | set(FALLBACK.values())


def block_size(kind: Type) -> int:
    """Return how many weights of a row share one block."""
    size: int = GGML_QUANT_SIZES[kind][0]
    return size


def stored_size(kind: Type, shape: tuple[int, ...]) -> int:
    """Return the bytes of a tensor, whose rows divide into blocks."""
    weights, size = GGML_QUANT_SIZES[kind]
    total: int = prod(shape) // weights * size
    return total
