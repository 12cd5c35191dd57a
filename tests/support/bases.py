"""Small bases without torch: a config.json of each family, and weights of zeros that it promises."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from toolkit.formats.pretokenizers import LLAMA3_SPLIT
from toolkit.model.families import family_of

COMMON: dict[str, Any] = {
    "vocab_size": 320, "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "hidden_act": "silu",
    "tie_word_embeddings": False, "attention_bias": False, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "architectures": ["LlamaForCausalLM"], "model_type": "llama", "mlp_bias": False,
              "head_dim": 16, "rope_theta": 5e5, "rope_scaling": LLAMA3},
    "mistral": {**COMMON, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 64},
    "phi3": {**COMMON, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "sliding_window": 96,
             "original_max_position_embeddings": 64, "rope_scaling": LONGROPE, "partial_rotary_factor": 1.0},
    "gemma2": {**COMMON, "architectures": ["Gemma2ForCausalLM"], "model_type": "gemma2", "head_dim": 16,
               "hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "sliding_window": 32,
               "query_pre_attn_scalar": 16, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
               "tie_word_embeddings": True, "layer_types": ["sliding_attention", "full_attention"]},
}  # fmt: skip


WORDS = [
    "Below", "Ġis", "Ġan", "Ġinstruction", "Ġthat", "Ġdescribes", "Ġa", "Ġtask", ",", "Ġpaired", "Ġwith", "Ġinput",
    "Ġprovides", "Ġfurther", "Ġcontext", ".", "ĠWrite", "Ġresponse", "Ġin", "ĠEnglish", "Ġappropriately",
    "Ġcompletes", "Ġthe", "Ġrequest", "###", "ĠInstruction", ":", "ĠInput", "ĠResponse", "Ġas", "Ġgeneral", "Ġdoctor",
    "question", "Ġanswer", "answer", "Explain", "Ġ###", "ĊĊ",
]  # fmt: skip


def save_vocabulary(folder: Path, **changes: Any) -> None:
    """Write a byte-level BPE tokenizer of 300 tokens as Llama-3's is made; `changes` replace parts of its model.

    The words of the default prompt are tokens: `ignore_merges` finds them without a merge. llama.cpp needs one.
    """
    tokens = dict.fromkeys([*sorted(pre_tokenizers.ByteLevel.alphabet()), *WORDS])
    encoder = Tokenizer(
        models.BPE({text: index for index, text in enumerate(tokens)}, [("Ġ", "a")], ignore_merges=True)
    )
    encoder.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA3_SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    encoder.decoder = decoders.ByteLevel()
    encoder.add_special_tokens(["</s>"])
    layout = json.loads(encoder.to_str())
    layout["model"] |= changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.json").write_text(json.dumps(layout), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text('{"eos_token": "</s>"}', encoding="utf-8")


def save_base(folder: Path, family: str, **changes: Any) -> Path:
    """Write config.json of a family, with changes, and the weights that it promises."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps({**CONFIGS[family], **changes}), encoding="utf-8")
    save_weights(folder)
    return folder


def save_weights(folder: Path, file: str = "model.safetensors") -> list[str]:
    """Write the tensors that a folder's config.json promises, all of them zero, and return their names."""
    family, model = family_of(folder)
    tensors = {part.source: np.zeros(part.shape, np.float16) for part in family.layouts(model)}
    save_file(tensors, folder / file)
    return list(tensors)
