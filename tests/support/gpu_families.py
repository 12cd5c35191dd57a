"""Random bases of every family for a GPU: as wide as the kernels want, with heads of 64."""

from pathlib import Path
from typing import Any

import torch

from tests.support import families
from tests.support.gpu_runs import name_specials
from toolkit.core.train_settings import LORA_TARGETS
from toolkit.model.base import Base

WIDE: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1024, "num_attention_heads": 8, "num_key_value_heads": 2, "head_dim": 64,
    "max_position_embeddings": 2048, "initializer_range": 0.03,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    **families.LONGROPE, "original_max_position_embeddings": 1024, "partial_rotary_factor": 0.75,
    "short_factor": [1 + 0.1 * n for n in range(24)], "long_factor": [1 + 0.7 * n for n in range(24)],
}  # fmt: skip
YARN: dict[str, Any] = {
    **families.YARN,
    "original_max_position_embeddings": 512,
    "attention_factor": 1.1386294361119891,
}
# One family or variant for each architecture that can be exported, and two with a head size or rotary scaling of their
# own → its settings. Windows are shorter than a record, so that all layers of a kind are seen to differ.
CASES: dict[str, dict[str, Any]] = {
    "llama": {},
    "mistral": {},
    "nemo": {"num_attention_heads": 4},
    "ministral3": {"num_attention_heads": 4},
    "phi3": {"sliding_window": 24, "original_max_position_embeddings": 2048},
    "phi4mini": {"rope_parameters": LONGROPE, "original_max_position_embeddings": 1024},
    "gemma2": {"query_pre_attn_scalar": 64},
    "gemma3": {"query_pre_attn_scalar": 64},
    "qwen2.5": {},
    "qwen3": {"num_attention_heads": 6},
    "qwen3.5": {},
    "smollm3": {},
    "granite": {},
    "granite4": {"shared_intermediate_size": 1024},
    "olmo2": {},
    "olmo3": {"rope_parameters": {"full_attention": YARN,
                                  "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}},
    "gemma3 that sees": {"query_pre_attn_scalar": 64},
    "mistral small that sees": {"num_attention_heads": 4},
    "qwen3.5 that sees": {},
}  # fmt: skip
FUSED = {
    "phi": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
    "granite4": ["q_proj", "k_proj", "v_proj", "o_proj", "input_linear", "output_linear"],
}


def wide_base(folder: Path, family: str) -> Base:
    """Save the random base of one case in bf16."""
    families.save(folder, family, dtype=torch.bfloat16, **{**WIDE, **CASES[family]})
    name_specials(folder)
    return Base(str(folder), folder)


def targets_of(family: str) -> list[str]:
    """Return the linear layers of a family that get an adapter: all of them."""
    return next((found for start, found in FUSED.items() if family.startswith(start)), LORA_TARGETS)
