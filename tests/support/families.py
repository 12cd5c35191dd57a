"""Small models with random weights of every family, shaped like the real ones in all that matters to the exporter."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.support import cache, models, vocabularies

COMMON: dict[str, Any] = {
    "hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 8,
    "num_key_value_heads": 2, "max_position_embeddings": 512, "initializer_range": 0.08,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None,
}  # fmt: skip
LONGROPE: dict[str, Any] = {
    "rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": 256,
    "short_factor": [1 + 0.1 * n for n in range(16)], "long_factor": [1 + 0.7 * n for n in range(16)],
}  # fmt: skip
LONGROPE_PART = {**LONGROPE, **{key: LONGROPE[key][:12] for key in ("short_factor", "long_factor")},
                 "partial_rotary_factor": 0.75}  # fmt: skip
ORIGINAL = "original_max_position_embeddings"
YARN: dict[str, Any] = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, ORIGINAL: 64}
MINISTRAL: dict[str, Any] = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, ORIGINAL: 64, "beta_fast": 32.0, "beta_slow": 1.0,
    "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip
# Rotary sections of 3, 3 and 2 pairs: half of a head of 32, and as many as Qwen3.5's 11, 11 and 10 in its ratio.
MROPE: dict[str, Any] = {"rope_type": "default", "rope_theta": 1e7, "partial_rotary_factor": 0.25,
                         "mrope_section": [3, 3, 2], "mrope_interleaved": True}  # fmt: skip
DELTA: dict[str, Any] = {"linear_num_key_heads": 2, "linear_num_value_heads": 6, "linear_key_head_dim": 64,
                         "linear_value_head_dim": 64, "linear_conv_kernel_dim": 4}  # fmt: skip
EYES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 28,
    "patch_size": 14,
}  # fmt: skip
QWEN_EYES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "depth": 1, "num_heads": 2, "patch_size": 14, "out_hidden_size": 256,
    "num_position_embeddings": 16,
}  # fmt: skip
LINEAR: dict[str, Any] = {"rope_type": "linear", "factor": 8.0}
WIDTHS = {"num_hidden_layers": 1, "intermediate_size": 128, "hidden_size": 64, "num_attention_heads": 2,
          "num_key_value_heads": 1, "head_dim": 32}  # fmt: skip


def save_gpt2(folder: Path, pre: str) -> None:
    """Save a small vocabulary of Phi-4's kind, with the class by which llama.cpp's converter knows it."""
    models.save_tokenizer(folder, pre)
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "tokenizer_class": "GPT2Tokenizer"}))


def save_qwen(folder: Path, pre: str = "qwen2") -> None:
    """Save a small vocabulary of Qwen's kind: no BOS, an EOS that ends a turn, and a pad token that ends a document."""
    models.save_tokenizer(folder, pre, bos=False, controls=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
    names = {"tokenizer_class": "Qwen2Tokenizer", "bos_token": None, "eos_token": "<|im_end|>",
             "pad_token": "<|endoftext|>", "unk_token": None}  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(names))


def save_thinking(folder: Path, pre: str = "qwen2") -> None:
    """Save a small vocabulary of Qwen3's kind: the marks of a thinking block are tokens, but no control tokens."""
    save_qwen(folder, pre)
    models.add_tokens(folder, folder, "<think>", "</think>", special=False)


def save_thinking_llama(folder: Path) -> None:
    """Save a small vocabulary of SmolLM3's kind: Llama-3's way to split, ChatML's turns, marks of a thinking block."""
    models.save_tokenizer(folder, bos=False, controls=("<|im_start|>", "<|im_end|>"))
    names = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<|im_end|>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(names))
    models.add_tokens(folder, folder, "<think>", "</think>", special=False)


def save_plain(folder: Path, pre: str) -> None:
    """Save a small byte-level vocabulary without BOS."""
    models.save_tokenizer(folder, pre, bos=False)


# Family as the tests name it → class of transformers, its own settings, a small vocabulary of its kind.
FAMILIES: dict[str, tuple[str, dict[str, Any], Callable[[Path], Any]]] = {
    "llama": ("Llama", {}, models.save_tokenizer),
    "mistral": ("Mistral", {"sliding_window": None}, lambda path: vocabularies.small_sentencepiece(path, "mistral")),
    "nemo": ("Mistral", {"sliding_window": None, "num_attention_heads": 4, "head_dim": 32, "rope_theta": 1e6},
             lambda path: models.save_tokenizer(path, "tekken")),
    "phi3": ("Phi3", {"sliding_window": 511, "original_max_position_embeddings": 512},
             lambda path: vocabularies.small_sentencepiece(path, "phi3")),
    "phi3.5": ("Phi3", {"rope_parameters": LONGROPE, "original_max_position_embeddings": 256, "sliding_window": 262144,
                        "num_key_value_heads": 8}, lambda path: vocabularies.small_sentencepiece(path, "phi3")),
    "phi4mini": ("Phi3", {"rope_parameters": LONGROPE_PART, "original_max_position_embeddings": 256,
                           "partial_rotary_factor": 0.75, "sliding_window": 262144, "tie_word_embeddings": True},
                  lambda path: save_gpt2(path, "gpt-4o")),
    "phi4": ("Phi3", {"sliding_window": None, "original_max_position_embeddings": 512, "rope_theta": 250000.0},
             lambda path: save_gpt2(path, "dbrx")),
    "gemma2": ("Gemma2", {"num_attention_heads": 4, "head_dim": 96, "query_pre_attn_scalar": 96, "sliding_window": 24,
                          "num_key_value_heads": 2, "attn_logit_softcapping": 1.5, "final_logit_softcapping": 2.0,
                          "hidden_activation": "gelu_pytorch_tanh", "intermediate_size": 512},
               lambda path: vocabularies.small_sentencepiece(path, "gemma")),
    "gemma3": ("Gemma3Text", {"num_hidden_layers": 7, "num_attention_heads": 4, "head_dim": 96, "sliding_window": 24,
                              "query_pre_attn_scalar": 96, "hidden_size": 128, "num_key_value_heads": 1,
                              "initializer_range": 0.02},
               lambda path: vocabularies.small_sentencepiece(path, "gemma")),
    "smollm3": ("SmolLM3", {"num_hidden_layers": 5, "rope_theta": 5e6}, models.save_tokenizer),
    "granite": ("Granite", {"attention_multiplier": 0.5, "embedding_multiplier": 0.8, "residual_multiplier": 1.3,
                            "logits_scaling": 0.8, "attention_bias": True, "tie_word_embeddings": True},
                lambda path: save_plain(path, "smollm")),
    "granite4": ("GraniteMoeHybrid", {"attention_multiplier": 0.5, "embedding_multiplier": 0.8, "logits_scaling": 0.8,
                                      "residual_multiplier": 1.3, "tie_word_embeddings": True, "num_local_experts": 0,
                                      "num_experts_per_tok": 0, "shared_intermediate_size": 256, "mamba_n_heads": 8,
                                      "position_embedding_type": "rope", "layer_types": ["attention"] * 2},
                 lambda path: save_plain(path, "dbrx")),
    "olmo2": ("Olmo2", {"rope_theta": 5e5}, lambda path: save_plain(path, "dbrx")),
    "olmo3": ("Olmo3", {"num_hidden_layers": 5, "sliding_window": 24, "rope_parameters": {
        "full_attention": {**YARN, "attention_factor": 1.1386294361119891},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}, lambda path: save_plain(path, "dbrx")),
    "qwen2.5": ("Qwen2", {"num_key_value_heads": 4, "rope_theta": 1e6}, save_qwen),
    "qwen3": ("Qwen3", {"num_attention_heads": 6, "head_dim": 64, "tie_word_embeddings": True, "rope_theta": 1e6},
              save_qwen),
    "qwen3.5": ("Qwen3_5Text", {**DELTA, "num_hidden_layers": 4, "head_dim": 64, "rope_parameters": MROPE},
                lambda path: save_qwen(path, "qwen35")),
}  # fmt: skip
# What else a family's config.json may say: family, its settings there.
SEEING = ("Gemma3", "Mistral3", "Qwen3_5")  # classes of models that also see images
VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "gemma3 linear": ("gemma3", {"rope_parameters": {
        "full_attention": {**LINEAR, "rope_theta": 1e6},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}, "final_logit_softcapping": 2.0}),
    "llama yarn": ("llama", {"rope_parameters": YARN}),
    "smollm3 yarn": ("smollm3", {"rope_parameters": YARN, "tie_word_embeddings": False}),
    "granite linear": ("granite", {"rope_parameters": {**LINEAR, "rope_theta": 1e4}, "mlp_bias": True}),
    "granite4 untied": ("granite4", {"attention_bias": True, "tie_word_embeddings": False}),
    "olmo2 linear": ("olmo2", {"rope_parameters": {**LINEAR, "rope_theta": 5e5}}),
    "olmo3 plain": ("olmo3", {"rope_parameters": None, "num_hidden_layers": 6,
                              "layer_types": ["sliding_attention", "full_attention"] * 3}),
    "ministral3": ("nemo", {"class": "Ministral3", "rope_parameters": MINISTRAL, "head_dim": 32}),
    "gemma3 that sees": ("gemma3", {"class": "Gemma3", "num_hidden_layers": 6}),
    "mistral small that sees": ("nemo", {"class": "Mistral3"}),
    "ministral3 that sees": ("nemo", {"class": "Mistral3", "rope_parameters": MINISTRAL, "inner": "Ministral3"}),
    "qwen2.5 linear": ("qwen2.5", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e6, "factor": 2.0},
                                   "tie_word_embeddings": True}),
    "qwen3.5 yarn": ("qwen3.5", {"rope_parameters": {**MROPE, **YARN}, "tie_word_embeddings": True,
                                 "linear_num_value_heads": 2}),
    "qwen3.5 that sees": ("qwen3.5", {"class": "Qwen3_5", "num_hidden_layers": 3, "tie_word_embeddings": True,
                                      "layer_types": ["full_attention", "linear_attention", "full_attention"]}),
    "qwen3 yarn": ("qwen3", {"rope_parameters": {**YARN, "attn_factor": 0.8782488562869419},
                             "tie_word_embeddings": False}),
}  # fmt: skip


THAT_SEE = [name for name, (_, own) in VARIANTS.items() if own.get("class") in SEEING]


def class_name(name: str) -> str:
    """Return the class of transformers that computes a configuration's text."""
    return f"{name}ForConditionalGeneration" if name in SEEING else f"{name.removesuffix('Text')}ForCausalLM"


def architecture_of(name: str) -> str:
    """Return the class that the config.json of a family or variant names."""
    family, own = VARIANTS.get(name, (name, {}))
    return class_name(own.get("class", FAMILIES[family][0]))


def save(
    folder: Path, family: str, *, vocabulary: Any = None, dtype: torch.dtype = torch.float32, **settings: Any
) -> Path:
    """Save a model of a family or variant; `vocabulary` saves its tokenizer, a small one by default."""
    family, own = VARIANTS.get(family, (family, {}))
    settings = {**own, **settings}

    def build(target: Path) -> None:
        _build(target, family, vocabulary or FAMILIES[family][2], dtype, settings)

    if vocabulary is None:
        cache.copied(folder, build, family, dtype, sorted(settings.items()))
    else:
        build(folder)
    torch.manual_seed(0)  # whether it was made or copied
    return folder


def save_stub(folder: Path, family: str) -> Path:
    """Save what a hub shows of a family or variant before a download: config.json, tokenizer and index, no weight."""
    from toolkit.model.families import family_of

    family, varied = VARIANTS.get(family, (family, {}))
    config, kind = _configured(family, varied)
    FAMILIES[family][2](folder)
    config.architectures = [class_name(kind)]
    config.save_pretrained(folder)
    found, model = family_of(folder)
    names = [layout.source for layout in found.layouts(model)]
    if kind in SEEING:
        inside = [f"model.language_model.{name.removeprefix('model.')}" for name in names if name != "lm_head.weight"]
        tower = "visual" if kind == "Qwen3_5" else "vision_tower"
        names = [*inside, *(name for name in names if name == "lm_head.weight"), f"model.{tower}.x.weight"]
    places = dict.fromkeys(names, "model-00001-of-00001.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def config_of(family: str) -> dict[str, Any]:
    """Return what the config.json of a family or variant says."""
    family, varied = VARIANTS.get(family, (family, {}))
    config, kind = _configured(family, varied)
    return {**json.loads(config.to_json_string(use_diff=False)), "architectures": [class_name(kind)]}


def _configured(family: str, settings: dict[str, Any]) -> tuple[Any, str]:
    """Return the configuration of a family with other settings, and its class as SEEING and `class_name` know it."""
    import transformers

    name, own, _ = FAMILIES[family]
    kind, inner = settings.get("class", name), settings.get("inner", name)
    stated = {key: value for key, value in settings.items() if key not in ("class", "inner")}
    config = getattr(transformers, f"{inner if kind in SEEING else kind}Config")(
        **{**COMMON, "vocab_size": 608, **own, **stated}
    )
    if kind in SEEING:
        sight = {"vision_config": EYES, "mm_tokens_per_image": 4, "image_token_index": 600}
        if kind == "Qwen3_5":
            sight = {"vision_config": QWEN_EYES, "image_token_id": 600, "video_token_id": 601}
        config = getattr(transformers, f"{kind}Config")(
            text_config=config.to_dict(), tie_word_embeddings=config.tie_word_embeddings, **sight
        )
    return config, kind


def _build(folder: Path, family: str, vocabulary: Any, dtype: torch.dtype, settings: dict[str, Any]) -> None:
    import transformers

    vocabulary(folder)
    config, kind = _configured(family, settings)
    torch.manual_seed(0)
    model = getattr(transformers, class_name(kind))(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            if key.endswith("norm.weight"):
                from_0 = kind.startswith(("Gemma", "Qwen3_5")) and not key.endswith("linear_attn.norm.weight")
                weight.copy_((0 if from_0 else 1) + 0.1 * torch.randn(weight.shape))
            elif key.endswith((".bias", ".dt_bias")):
                weight.copy_(0.1 * torch.randn(weight.shape))
    model.to(dtype).save_pretrained(folder)
    if kind == "GraniteMoeHybrid":  # as published, which the converter needs; transformers saves a newer name
        path = folder / "config.json"
        path.write_text(path.read_text().replace('"full_attention"', '"attention"'))
