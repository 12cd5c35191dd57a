"""Linear and yarn scaling of the rotary embedding, as llama.cpp computes it for every architecture.

Facts: llama.cpp's conversion/base.py (`set_gguf_parameters`), src/llama-context.cpp and ggml's `rope_yarn`;
transformers' modeling_rope_utils.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, count, expect, real
from toolkit.model.families.family import COUNT, REAL, TEXT, rope, rope_parameters
from toolkit.model.model_config import ModelConfig

ORIGINAL = "original_max_position_embeddings"
# In a GGUF header under `rope.scaling.`, and in config.json.
STATED = {
    "factor": "factor",
    "original_context_length": ORIGINAL,
    "yarn_beta_fast": "beta_fast",
    "yarn_beta_slow": "beta_slow",
    "yarn_attn_factor": "attn_factor",
    "yarn_ext_factor": "extrapolation_factor",
}


def scaled_rope(
    config: Values, theta: float = 10000.0, more: Mapping[str, tuple[str, ...]] = MappingProxyType({})
) -> tuple[float, dict[str, Any]]:
    """Return rotary base and scaling, {} for none; `theta` is the base of a config.json that states none.

    `more` are the kinds that one family has besides, as for `rope`. Raises ValueError for yarn whose numbers llama.cpp
    would replace by its own.
    """
    base, scaling = rope(config, {"linear": ("factor",), **more, "yarn": ("factor",)}, theta)
    if scaling.get("type") == "yarn":
        scaling.update(_yarn(config, scaling["factor"]))
    return base, scaling


def _yarn(config: Values, factor: float) -> dict[str, Any]:
    """Return the original context, and the factor that only the file states: neither transformers nor llama.cpp
    reads `attn_factor` (DeepSeek-R1-0528-Qwen3-8B has one)."""
    stated = rope_parameters(config)
    for key, wanted in {"beta_fast": 32, "beta_slow": 1, "extrapolation_factor": 1, "truncate": True}.items():
        expect(stated, key, wanted)
    for key in ("mscale", "mscale_all_dim"):
        if stated.get(key):
            raise ValueError(f"`{key}` is {stated[key]!r}, but llama.cpp computes this family's yarn without it")
    usual = 0.1 * math.log(factor) + 1 if factor > 1 else 1.0
    given = real(stated, "attention_factor", usual)
    if not math.isclose(given, usual, rel_tol=1e-6):
        raise ValueError(f"`attention_factor` is {given!r}, but llama.cpp's yarn has {usual:.6f} for this factor")
    original = count(stated, ORIGINAL, count(config, ORIGINAL) if config.get(ORIGINAL) is not None else None)
    unread = stated.get("attention_factor", stated.get("attn_factor"))
    said = {key: real(stated, key) for key in ("beta_fast", "beta_slow") if stated.get(key) is not None}
    if unread is not None:
        said["attn_factor"] = real({"attn_factor": unread}, "attn_factor")
    if stated.get("extrapolation_factor") is not None:
        said["ext_factor"] = 1.0
    return {"original": original, "said": said}


def stated_rope(values: Values, theta: float | None = None) -> dict[str, Any]:
    """Return a GGUF header's rotary embedding as config.json states it; `theta` is the base where it states none."""
    found: dict[str, Any] = {"rope_type": "default"}
    base = values.get("rope.freq_base", theta)
    if base is not None:
        found["rope_theta"] = base
    kind = values.get("rope.scaling.type")
    if kind in (None, "none"):
        return found
    scaling = {ours: values[f"rope.scaling.{key}"] for key, ours in STATED.items() if f"rope.scaling.{key}" in values}
    return {**found, **scaling, "rope_type": kind}


def scaling_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs of linear or yarn scaling; none for a model without."""
    name, kind = f"{model.architecture}.rope.scaling", model.rope.get("type")
    if kind not in ("linear", "yarn"):
        return {}
    values: Metadata = {f"{name}.type": (kind, TEXT), f"{name}.factor": (model.rope["factor"], REAL)}
    if kind == "yarn":
        values[f"{name}.original_context_length"] = (model.rope["original"], COUNT)
        values.update({f"{name}.yarn_{key}": (value, REAL) for key, value in model.rope["said"].items()})
    return values
