"""What cannot be exported is refused before it is trained: models, tokenizers, targets, quantizations, prompts."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support import bases, families
from tests.support.damage import edit_json
from tests.support.stubs import asked, change_vocabulary, refused, save_index, save_stub, settings
from toolkit.core import parsing
from toolkit.core.errors import ToolkitError
from toolkit.export import foresight
from toolkit.formats.ggml_types import BASE
from toolkit.model import base as labels
from toolkit.prompt import tokenizer_json

FLAGS = ("lstrip", "rstrip", "single_word", "normalized")


@pytest.fixture
def stub(tmp_path: Path) -> Path:
    return save_stub(tmp_path / "base")


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.VARIANTS])
def test_every_family_passes_without_a_weight(family: str, tmp_path: Path) -> None:
    base = families.save_stub(tmp_path / "base", family)
    own = {"phi": "qkv_proj,o_proj,gate_up_proj,down_proj", "granite4": "q_proj,o_proj,input_linear,output_linear"}
    found = asked(base, *(f"train.target_modules={names}" for start, names in own.items() if family.startswith(start)))
    assert found.ok is not False, found
    assert "Q4_K_M" in found.found
    assert not list(base.glob("*.safetensors"))


GRANITE4: dict[str, Any] = {"num_local_experts": 0, "mamba_d_state": 128, "layer_types": ["attention"] * 2}
KINDS: list[tuple[dict[str, Any], str]] = [
    ({"architectures": ["MambaForCausalLM"], "model_type": "mamba", "state_size": 16}, "a Mamba model"),
    ({"architectures": ["Mamba2ForCausalLM"], "model_type": "mamba2"}, "a Mamba model"),
    ({"architectures": ["NemotronHForCausalLM"], "model_type": "nemotron_h"}, "a Mamba model"),
    ({"architectures": ["JambaForCausalLM"], "num_experts": 16}, "a Mamba model"),
    ({"architectures": ["FalconH1ForCausalLM"], "mamba_d_state": 256}, "a Mamba model"),
    (
        {"architectures": ["GraniteMoeHybridForCausalLM"], **GRANITE4, "layer_types": ["mamba"] * 9},
        "is a Mamba model (",
    ),
    (
        {"architectures": ["GraniteMoeHybridForCausalLM"], **GRANITE4, "layer_types": ["linear_attention"]},
        "a Mamba model",
    ),
    ({"architectures": ["GraniteMoeHybridForCausalLM"], **GRANITE4, "layer_types": None}, "is a Mamba model ("),
    (
        {"architectures": ["GraniteMoeHybridForCausalLM"], **GRANITE4, "num_local_experts": 64},
        "is a mixture of experts, which",
    ),
    (
        {"architectures": ["GraniteMoeHybridForCausalLM"], "layer_types": ["attention"], "num_local_experts": None},
        "is a mixture of experts, which",
    ),
    ({"architectures": ["GraniteMoeForCausalLM"], "num_local_experts": 32}, "a mixture of experts"),
    ({"architectures": ["MixtralForCausalLM"], "num_local_experts": 8}, "a mixture of experts"),
    ({"architectures": ["Qwen3MoeForCausalLM"], "num_experts": 128}, "a mixture of experts"),
    ({"architectures": ["DeepseekV3ForCausalLM"], "n_routed_experts": 256}, "a mixture of experts"),
    ({"architectures": ["GptOssForCausalLM"], "num_local_experts": 32}, "a mixture of experts"),
    ({"architectures": ["Qwen3NextForCausalLM"], "layer_types": ["linear_attention"]}, "linear attention"),
    (
        {
            "architectures": ["Qwen3_5MoeForConditionalGeneration"],
            "model_type": "qwen3_5_moe",
            "vision_config": {},
            "text_config": {"layer_types": ["linear_attention"] * 3 + ["full_attention"], "num_experts": 256},
        },
        "a model with linear attention (gated delta net) and a mixture of experts and a vision model",
    ),
    (
        {"architectures": ["KimiLinearForCausalLM"], "model_type": "kimi_linear", "layer_types": ["linear_attention"]},
        "a model with linear attention (gated delta net)",
    ),
    (
        {"architectures": ["Qwen3_5MoeForCausalLM"], "num_experts": 256, "layer_types": ["linear_attention"]},
        "linear attention (gated delta net) and a mixture of experts",
    ),
    ({"architectures": ["ViTForImageClassification"], "vocab_size": None, "image_size": 224}, "a vision model"),
    ({"architectures": ["LlavaForConditionalGeneration"], "vision_config": {}, "text_config": {}}, "a vision model"),
    ({"architectures": ["Qwen2AudioForConditionalGeneration"], "audio_config": {}}, "an audio model"),
    ({"architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True}, "an encoder with a decoder"),
    ({"architectures": ["BertForMaskedLM"], "model_type": "bert"}, "an encoder"),
    ({"architectures": ["CohereForCausalLM"], "model_type": "cohere"}, "CohereForCausalLM, which cannot be exported"),
    ({"architectures": None}, "names no architecture"),
]


@pytest.mark.parametrize(("values", "words"), KINDS, ids=[f"{words} {n}" for n, (_, words) in enumerate(KINDS)])
def test_other_models_are_refused_by_name(stub: Path, values: dict[str, Any], words: str) -> None:
    edit_json(stub / "config.json", **values)
    found = refused(stub)
    assert words in found.found
    assert all(name in found.found for name in values["architectures"] or [])
    assert "LlamaForCausalLM" in found.fix and "Gemma2ForCausalLM" in found.fix


def test_a_llama_with_experts_is_a_mixture_too(stub: Path) -> None:
    edit_json(stub / "config.json", num_local_experts=4)
    assert "mixture of experts" in refused(stub).found


@pytest.mark.parametrize("method", ["fp8", "gptq", "awq", "compressed-tensors"])
def test_quantized_originals_are_refused_by_name(stub: Path, method: str) -> None:
    edit_json(stub / "config.json", quantization_config={"quant_method": method})
    found = refused(stub)
    assert f"quantized with {method}" in found.found and "16-bit" in found.fix


@pytest.mark.parametrize(
    ("label", "other"),
    [
        ("mistralai/Ministral-3-8B-Instruct-2512", "mistralai/Ministral-3-8B-Instruct-2512-BF16"),
        ("Qwen/Qwen3-8B-FP8", "Qwen/Qwen3-8B"),
        ("RedHatAI/Llama-3.1-8B-Instruct-FP8-dynamic", "RedHatAI/Llama-3.1-8B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct-GPTQ-Int4", "Qwen/Qwen2.5-7B-Instruct"),
        ("Qwen/Qwen2.5-7B-Instruct", ""),
        ("mistralai/Ministral-3-8B-Base-2512", ""),
    ],
)
def test_the_16_bit_repository_of_a_quantized_one(label: str, other: str) -> None:
    assert labels.unquantized(label) == other


TOKENIZERS: list[tuple[dict[str, Any], str]] = [
    ({"dropout": 0.1}, "dropout"),
    ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
    ({"merges": []}, "llama.cpp cannot load the vocabulary"),
    ({"type": "WordLevel", "unk_token": "Below", "merges": None}, "is WordLevel, not BPE"),
]


@pytest.mark.parametrize(("values", "words"), TOKENIZERS, ids=[words for _, words in TOKENIZERS])
def test_tokenizers_that_the_exporter_refuses(stub: Path, values: dict[str, Any], words: str) -> None:
    change_vocabulary(stub, **values)
    found = refused(stub)
    assert words in found.found and "LlamaForCausalLM" in found.fix


@pytest.mark.parametrize(
    "step",
    [
        {"type": "Whitespace"},
        {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
        {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
    ],
)
def test_pre_tokenizers_that_llama_cpp_has_not(stub: Path, step: dict[str, Any]) -> None:
    edit_json(stub / "tokenizer.json", pre_tokenizer=step)
    assert "pre-tokenizer" in refused(stub).found


def test_ids_beyond_the_embedding(stub: Path) -> None:
    edit_json(stub / "config.json", vocab_size=64)
    assert "the embedding has 64 rows" in refused(stub).found


@pytest.mark.parametrize(("special", "fine"), [(True, True), (False, False)])
def test_an_added_token_beyond_the_embedding(stub: Path, special: bool, fine: bool) -> None:
    """As an image's token in Gemma-3 1B: no text becomes a control token, but an ordinary one may stand in a text."""
    layout = json.loads((stub / "tokenizer.json").read_text(encoding="utf-8"))
    token = {"id": 512, "content": "<image_soft_token>", "special": special, **dict.fromkeys(FLAGS, False)}
    edit_json(stub / "tokenizer.json", added_tokens=[*layout["added_tokens"], token])
    found = asked(stub)
    assert (found.ok is True) is fine
    assert fine or ("`<image_soft_token>`" in found.found and "the embedding has 512 rows" in found.found)


def test_a_missing_tokenizer(stub: Path) -> None:
    (stub / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(stub).found


@pytest.mark.parametrize(
    ("family", "targets", "words"),
    [
        ("llama", "q_proj,qkv_proj", "layers that this base does not have: qkv_proj"),
        ("llama", "input_layernorm", "layers that this base does not have: input_layernorm"),
        ("gemma2", "lm_head", "computes the output of gemma2 from its embedding"),
        ("gemma2", "q_proj,embed_tokens", "computes the output of gemma2 from its embedding"),
    ],
)
def test_targets_that_could_not_be_merged(tmp_path: Path, family: str, targets: str, words: str) -> None:
    base = bases.save_base(tmp_path / "base", family)
    bases.save_vocabulary(base)
    assert words in refused(base, f"train.target_modules={targets}").found


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("targets", ["lm_head", "embed_tokens", "q_proj,embed_tokens,lm_head"])
def test_ends_that_can_be_merged(stub: Path, targets: str, tied: bool) -> None:
    edit_json(stub / "config.json", tie_word_embeddings=tied)
    save_index(stub)
    assert asked(stub, f"train.target_modules={targets}").ok


def test_quantizations_against_the_shape(stub: Path) -> None:
    wanted = ("export.quantizations=IQ2_XXS", "export.default=IQ2_XXS")
    found = asked(stub, *wanted)
    assert found.ok is False and "needs an importance matrix" in found.found
    assert asked(stub, *wanted, "export.imatrix=true").ok
    every = ",".join(name for name in BASE if not name.startswith(("IQ2", "IQ3_XXS")))
    assert asked(stub, f"export.quantizations={every}").ok


def test_a_prompt_that_the_vocabulary_cannot_write(stub: Path) -> None:
    """It stops training too, so the adapter alone is no way out."""
    found = asked(stub, "prompt.preset=chatml")
    assert found.ok is False and "no control token `<|im_start|>`" in found.found
    assert "train.allow_unexportable" not in found.fix and "prompt.preset" in found.fix


@pytest.mark.parametrize("preset", ["alpaca", "custom"])
def test_a_tokenizer_is_parsed_once(stub: Path, monkeypatch: pytest.MonkeyPatch, preset: str) -> None:
    """One of 128,256 tokens takes half a second each time."""
    read: list[Path] = []

    def counted(path: Path, hint: str = "") -> dict[str, Any]:
        read.append(path)
        return parsing.read_json(path, hint)

    monkeypatch.setattr(tokenizer_json, "read_json", counted)
    turn = ("prompt.user_turn={instruction}{input}",) if preset == "custom" else ()
    assert asked(stub, f"prompt.preset={preset}", *turn).ok
    assert read == [stub / "tokenizer.json"]
    change_vocabulary(stub, dropout=0.5)  # the next time it is read again
    assert "dropout" in refused(stub).found
    assert len(read) == 2


def test_the_error_says_what_the_export_would_say(stub: Path) -> None:
    change_vocabulary(stub, dropout=0.5)
    with pytest.raises(ToolkitError, match="dropout") as refusal:
        foresight.foresee(stub, settings(stub))
    assert "byte-level BPE" in refusal.value.hint
