"""The language model of a base that also sees images, as transformers loads it alone, without the vision tower."""

from typing import Any

# Names in a checkpoint → names in the language model, as `formats.checkpoint.text_name` has them.
RENAMED = {
    r"^(?:model\.)?language_model\.(?:model\.)?(?!lm_head)": "model.",
    r"^(?:model\.)?language_model\.lm_head": "lm_head",
}


def text_part(config: Any) -> tuple[Any, dict[str, Any]]:
    """Return the configuration of transformers for the text alone, and what `from_pretrained` needs to load it.

    Both are as given, and empty, for a model that reads text only.
    """
    inner = config.get_text_config(decoder=True)
    if inner is config or getattr(config, "vision_config", None) is None:
        return config, {}
    if getattr(config, "quantization_config", None) is not None:
        inner.quantization_config = config.quantization_config
    if getattr(config, "tie_word_embeddings", False):  # transformers asks the whole model's
        inner.tie_word_embeddings = True
    return inner, {"key_mapping": RENAMED}
