"""Model families: how each one's checkpoint is named, laid out and described in GGUF.

A family is one entry of FAMILIES and a module with the functions that it points to; any other architecture is refused
before a weight is read. Facts: llama.cpp's conversion/ and src/models/, gguf's tensor names.
"""

from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats import bnb_4bit, checkpoint
from toolkit.model.config_values import count
from toolkit.model.families import gemma2, llama, phi3
from toolkit.model.families.checks import check_layers, checked_layouts
from toolkit.model.families.family import Family, Layout, to_ggml_layout
from toolkit.model.model_config import ModelConfig, architecture, model_config, read_config, sizes, unusable

__all__ = ["FAMILIES", "Family", "Layout", "check_base", "checked_layouts", "family_of", "to_ggml_layout"]

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(llama.llama_model, llama.llama_layouts, llama.computed, llama.llama_metadata),
    "MistralForCausalLM": Family(llama.mistral, llama.llama_layouts, llama.computed, llama.llama_metadata),
    "Phi3ForCausalLM": Family(
        phi3.phi3_model, phi3.phi3_layouts, phi3.computed, phi3.phi3_metadata, special_by_flag=True
    ),
    "Gemma2ForCausalLM": Family(gemma2.gemma2_model, gemma2.gemma2_layouts, gemma2.computed, gemma2.gemma2_metadata),
}


def family_of(folder: Path) -> tuple[Family, ModelConfig]:
    """Return family and sizes of the model in a folder.

    Raises ToolkitError for an architecture that is not in the table, or a config that lacks what is needed.
    """
    config = read_config(folder)
    name = architecture(config)
    if name not in FAMILIES:
        raise ToolkitError(
            f"the base model in `{folder}` has the architecture {name and name[:60]}, which cannot be exported",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    method = bnb_4bit.refused(config)
    if method:
        raise ToolkitError(
            f"the base model in `{folder}` is quantized with {method}, which cannot be undone here",
            hint="use the 16-bit base model; of quantized ones only bitsandbytes' 4 bits can be exported",
        )
    try:
        model = sizes(config)
        if model is None:
            raise ValueError("`num_local_experts` is stated, a mixture of experts cannot be exported")
        count(config, "max_position_embeddings")
        return FAMILIES[name], FAMILIES[name].model(config, model)
    except ValueError as exc:
        raise unusable(folder, exc) from None


def check_base(folder: Path, *, exported: bool) -> None:
    """Hold a base's config.json to its tensors, by headers alone; raises ToolkitError for what does not fit.

    One that is to be `exported` must be of a family that can be, and have each of its tensors in the right shape.
    """
    if exported:
        family, model = family_of(folder)
        checked_layouts(folder, family, model, checkpoint.open_folder(folder))
        return
    found = model_config(folder)
    if found is not None:
        check_layers(folder, found, checkpoint.open_folder(folder))
