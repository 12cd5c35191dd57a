"""Model families: how each one's checkpoint is named, laid out and described in GGUF.

A family is one entry of FAMILIES and a module with the functions that it points to; any other architecture is refused
before a weight is read. Facts: llama.cpp's conversion/ and src/models/, gguf's tensor names.
"""

from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats import bnb_4bit
from toolkit.formats.checkpoint import read_json
from toolkit.model.families import gemma2, llama, phi3
from toolkit.model.families.family import Family, Layout, ModelConfig, to_ggml_layout

__all__ = ["FAMILIES", "Family", "Layout", "ModelConfig", "family_of", "to_ggml_layout"]

FAMILIES: dict[str, Family] = {
    "LlamaForCausalLM": Family(llama.llama_model, llama.llama_layouts, llama.computed, llama.llama_metadata),
    "MistralForCausalLM": Family(llama.mistral, llama.llama_layouts, llama.computed, llama.llama_metadata),
    "Phi3ForCausalLM": Family(
        phi3.phi3_model, phi3.phi3_layouts, phi3.computed, phi3.phi3_metadata, special_by_flag=True
    ),
    "Gemma2ForCausalLM": Family(gemma2.gemma2_model, gemma2.gemma2_layouts, gemma2.computed, gemma2.gemma2_metadata),
}


def family_of(folder: Path) -> tuple[Family, ModelConfig]:
    """Return the family and shape of the model in a folder.

    Raises ToolkitError for an architecture that is not in the table, or a config that lacks what is needed.
    """
    config = read_json(folder / "config.json", "give a folder with a whole base model")
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in FAMILIES:
        raise ToolkitError(
            f"the base model in `{folder}` has the architecture {name}, which cannot be exported",
            hint=f"supported: {', '.join(sorted(FAMILIES))}",
        )
    method = bnb_4bit.refused(config)
    if method:
        raise ToolkitError(
            f"the base model in `{folder}` is quantized with {method}, which cannot be undone here",
            hint="use the 16-bit base model; of quantized ones only bitsandbytes' 4 bits can be exported",
        )
    try:
        return FAMILIES[name], FAMILIES[name].model(config)
    except (KeyError, TypeError, ValueError) as exc:
        what = f"lacks {exc}" if isinstance(exc, KeyError) else f"holds {exc}"
        raise ToolkitError(f"`{folder / 'config.json'}` {what}", hint="copy or download the base again") from None
