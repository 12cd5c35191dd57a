"""Mistral Small 3.1 and 3.2, Magistral, Devstral, Ministral 3: the text of models that also see images.

As Llama. Ministral 3 has yarn with a factor of its own for the attention, and queries that grow with their position.
Architecture `mistral3`. Facts: llama.cpp's conversion/mistral3.py and src/models/mistral3.cpp.
"""

from dataclasses import replace
from typing import Any

from toolkit.formats.gguf_writer import Metadata
from toolkit.model.config_values import Values, brief, count, expect, real
from toolkit.model.families.family import COUNT, REAL, TEXT, Family, GgufHeader, nothing_computed, rope, rope_parameters
from toolkit.model.families.llama import llama_layouts, llama_metadata, mistral
from toolkit.model.families.scaling import ORIGINAL, stated_rope
from toolkit.model.kinds import class_of
from toolkit.model.model_config import ModelConfig


def mistral3_model(config: Values, model: ModelConfig) -> ModelConfig:
    """Complete the sizes by the rotary embedding; raises ValueError for what llama.cpp computes differently."""
    kind = config.get("model_type")
    if kind == "ministral3":
        expect(config, "hidden_act", "silu")
        if config.get("sliding_window") is not None:
            raise ValueError(f"`sliding_window` is {brief(config['sliding_window'])}, but llama.cpp has none here")
        theta, scaling = rope(config, {"yarn": ("factor",)}, 1e6)
        return replace(model, rope_theta=theta, rope={**scaling, **_yarn(config, scaling)})
    if kind not in (None, "mistral"):
        raise ValueError(f"`model_type` of its text is {brief(kind)}, but only mistral and ministral3 can be exported")
    return mistral(config, model)


def _yarn(config: Values, scaling: dict[str, Any]) -> dict[str, Any]:
    """Return what Ministral 3's yarn says; llama.cpp reads all of it, and takes `mscale` for 1."""
    if not scaling:
        raise ValueError("`rope_parameters` state no yarn scaling, which llama.cpp requires of ministral3")
    stated = rope_parameters(config)
    expect({"mscale": real(stated, "mscale", 1.0)}, "mscale", 1.0)
    expect(stated, "truncate", True)
    if stated.get("attention_factor") is not None:
        raise ValueError(
            f"`attention_factor` is {brief(stated['attention_factor'])}, but llama.cpp takes it from `mscale_all_dim`"
        )
    return {
        "original": count(stated, ORIGINAL),
        "beta_fast": real(stated, "beta_fast", 32.0),
        "beta_slow": real(stated, "beta_slow", 1.0),
        "log": real(stated, "mscale_all_dim"),
        "temperature": real(stated, "llama_4_scaling_beta"),
    }


def mistral3_metadata(model: ModelConfig) -> Metadata:
    """Return the key-value pairs that llama.cpp builds the model from."""
    if "temperature" not in model.rope:
        return llama_metadata(model)
    values, name = llama_metadata(replace(model, rope={})), "mistral3.rope.scaling"
    return {
        **values,
        f"{name}.type": ("yarn", TEXT),
        f"{name}.factor": (model.rope["factor"], REAL),
        f"{name}.original_context_length": (model.rope["original"], COUNT),
        f"{name}.yarn_beta_fast": (model.rope["beta_fast"], REAL),
        f"{name}.yarn_beta_slow": (model.rope["beta_slow"], REAL),
        f"{name}.yarn_log_multiplier": (model.rope["log"], REAL),
        "mistral3.attention.temperature_scale": (model.rope["temperature"], REAL),
    }


def mistral3_stated(header: GgufHeader) -> dict[str, Any]:
    """Return what config.json says of a GGUF file: Ministral 3's queries grow; Mistral Small is a Mistral."""
    values = header.values
    if values.get("attention.temperature_scale") is None:
        return {**class_of("mistral"), "sliding_window": None}
    more = {"mscale": 1.0, "mscale_all_dim": real(values, "rope.scaling.yarn_log_multiplier"),
            "llama_4_scaling_beta": real(values, "attention.temperature_scale")}  # fmt: skip
    return {**class_of("ministral3"), "rope_parameters": {**stated_rope(values), **more}, "sliding_window": None}


MISTRAL3 = Family(
    "mistral3", mistral3_model, llama_layouts, nothing_computed, mistral3_metadata, stated=mistral3_stated
)
