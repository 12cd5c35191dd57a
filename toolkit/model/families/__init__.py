"""Model families: how each one's checkpoint is named, laid out and described in GGUF.

A family is one entry of FAMILIES and a module with the functions that it points to; any other architecture is refused
before a weight is read. Facts: llama.cpp's conversion/ and src/models/, gguf's tensor names.
"""

from dataclasses import replace
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.formats import bnb_4bit, checkpoint
from toolkit.model.config_values import count
from toolkit.model.families import gemma2, gemma3, granite, llama, mistral3, olmo, phi3, qwen, qwen35, smollm3
from toolkit.model.families.checks import check_layers, checked_layouts
from toolkit.model.families.family import Family, to_ggml_layout
from toolkit.model.families.refused import kind_of
from toolkit.model.kinds import architecture, check_model_type, text_values
from toolkit.model.model_config import ModelConfig, model_config, read_config, sizes, unusable

__all__ = [
    "FAMILIES",
    "Family",
    "check_base",
    "checked_layouts",
    "family_of",
    "gguf_shapes",
    "supported",
    "to_ggml_layout",
]

FAMILIES = {
    "LlamaForCausalLM": llama.LLAMA,
    "MistralForCausalLM": llama.MISTRAL,
    "Mistral3ForConditionalGeneration": mistral3.MISTRAL3,
    "Ministral3ForCausalLM": mistral3.MISTRAL3,
    "Phi3ForCausalLM": phi3.PHI3,
    "Gemma2ForCausalLM": gemma2.GEMMA2,
    "Gemma3ForCausalLM": gemma3.GEMMA3,
    "Gemma3ForConditionalGeneration": gemma3.GEMMA3,
    "GraniteForCausalLM": granite.GRANITE,
    "GraniteMoeHybridForCausalLM": granite.GRANITE4,
    "Olmo2ForCausalLM": olmo.OLMO2,
    "Olmo3ForCausalLM": olmo.OLMO3,
    "Qwen2ForCausalLM": qwen.QWEN2,
    "Qwen3ForCausalLM": qwen.QWEN3,
    "Qwen3_5ForCausalLM": qwen35.QWEN35,
    "Qwen3_5ForConditionalGeneration": qwen35.QWEN35,
    "SmolLM3ForCausalLM": smollm3.SMOLLM3,
}


def supported() -> str:
    """List the architectures that can be exported, for a message."""
    return ", ".join(sorted(FAMILIES))


def family_of(folder: Path) -> tuple[Family, ModelConfig]:
    """Return family and sizes of the model in a folder.

    Raises ToolkitError for an architecture that is not in the table, or a config that lacks what is needed.
    """
    config = read_config(folder)
    name = architecture(config)
    if name not in FAMILIES:
        kind = kind_of(config, name or "")
        what = f"has the architecture {name[:60]}" if name else "names no architecture in its config.json"
        raise ToolkitError(
            f"the base model in `{folder}` {what}, which cannot be exported{f': it is {kind}' if kind else ''}",
            hint=f"supported: {supported()}",
        )
    method = bnb_4bit.refused(config)
    if method:
        raise ToolkitError(
            f"the base model in `{folder}` is quantized with {method}, which cannot be undone here",
            hint="use the 16-bit base model; of the quantized ones, only bitsandbytes in 4 bits can be exported",
        )
    try:
        model = sizes(config)
        if model is None:
            raise ToolkitError(
                f"the base model in `{folder}` ({name}) is {kind_of(config, name) or 'of a form that is not known'}, "
                "which cannot be exported",
                hint=f"supported: {supported()}",
            )
        of_text = text_values(config)
        count(of_text, "max_position_embeddings")
        found = FAMILIES[name].model(of_text, model)
        if of_text is not config:
            said = "its vision tower: the language model alone is exported"
            found = replace(found, ignored=" and ".join(filter(None, [said, found.ignored])))
        check_model_type(config)
        return FAMILIES[name], found
    except ValueError as exc:
        raise unusable(folder, exc) from None


def check_base(folder: Path) -> None:
    """Check a base's config.json against its tensors, by headers alone; raises ToolkitError if they do not match."""
    found = model_config(folder)
    if found is not None:
        check_layers(folder, found, checkpoint.open_folder(folder))


def gguf_shapes(model: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the tensors of a model's GGUF file by name, (out, in); a family that cannot be exported counts as Llama.

    Sizes from config.json alone are enough: nothing is read.
    """
    found = (family.layouts for family in FAMILIES.values() if family.architecture == model.architecture)
    try:
        layouts = next(found, llama.llama_layouts)(model)
    except ToolkitError:  # Gemma-2 with a separate head
        layouts = llama.llama_layouts(model)
    return {layout.name: layout.shape for layout in layouts}
