"""Every kind of adapter that PEFT saves is merged into what PEFT computes with it, to a mean KL of 1e-9."""

import json
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer

from tests.support import models
from tests.support.trained import ATTENTION, distance, train
from toolkit.core.errors import ToolkitError
from toolkit.export import export, plan

SHAPE: dict[str, Any] = {
    "hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "attention_bias": True,
    "mlp_bias": True,
}  # fmt: skip
EMBEDDED = [*ATTENTION, "embed_tokens"]
BOTH = [*ATTENTION, "embed_tokens", "lm_head"]

# Settings of LoraConfig and of the test; whether the tied base stays tied.
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "DoRA": ({"use_dora": True, "target_modules": "all-linear"}, True),
    "DoRA on the embedding": ({"use_dora": True, "target_modules": EMBEDDED}, False),
    "DoRA, rsLoRA, patterns": (
        {"use_dora": True, "use_rslora": True, "rank_pattern": {"v_proj": 2}, "alpha_pattern": {"q_proj": 3}}, True,
    ),
    "bias lora_only": ({"bias": "lora_only"}, True),
    "bias all": ({"bias": "all"}, True),
    "bias all and a trained layer": ({"bias": "all", "modules_to_save": ["k_proj"]}, True),
    "bias of lora_B": ({"lora_bias": True}, True),
    "trained norms": ({"modules_to_save": ["norm", "input_layernorm"]}, True),
    "trained lm_head": ({"modules_to_save": ["lm_head"]}, False),
    "trained embed_tokens": ({"modules_to_save": ["embed_tokens"]}, False),
    "trained embed_tokens and lm_head": ({"modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "trained embed_tokens, tied by PEFT": ({"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}, True),
    "LoRA on embed_tokens": ({"target_modules": EMBEDDED}, False),
    "LoRA on lm_head": ({"target_modules": [*ATTENTION, "lm_head"]}, False),
    "LoRA on both": ({"target_modules": BOTH}, False),
    "LoRA on both, no copy of the base": ({"target_modules": BOTH, "embeddings": False}, False),
    "a copy of the embeddings": ({"embeddings": True}, True),
    "single tokens": ({"trainable_token_indices": [7, 3, 400]}, True),
    "single tokens by name": ({"trainable_token_indices": {"embed_tokens": [9, 2]}}, True),
    "resized": ({"resize": 530}, True),
    "resized, trained": ({"resize": 530, "modules_to_save": ["embed_tokens", "lm_head"]}, False),
    "resized, trained embed_tokens": ({"resize": 530, "modules_to_save": ["embed_tokens"]}, False),
    "resized, LoRA on both": ({"resize": 530, "target_modules": BOTH}, False),
    "resized, single tokens": ({"resize": 530, "trainable_token_indices": [525, 3]}, True),
    "all-linear but some": ({"target_modules": "all-linear", "exclude_modules": ["o_proj"]}, True),
    "one layer": ({"layers_to_transform": [1], "layers_pattern": "layers"}, True),
    "a regular expression": ({"target_modules": r".*\.(q_proj|down_proj)"}, True),
}  # fmt: skip
FAST = ("DoRA on the embedding", "LoRA on both", "resized, trained embed_tokens")


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {tied: models.save_model(folder / str(tied), tie_word_embeddings=tied, **SHAPE) for tied in (True, False)}


def has_output(path: Path) -> bool:
    return any(tensor.name == "output.weight" for tensor in gguf.GGUFReader(path).tensors)


@pytest.mark.parametrize(
    ("kind", "tied"),
    [
        pytest.param(kind, tied, marks=() if kind in FAST and tied else pytest.mark.slow)
        for kind in KINDS
        for tied in (True, False)
    ],
)
def test_what_peft_computes(bases: dict[bool, Path], tmp_path: Path, kind: str, tied: bool) -> None:
    settings, stays_tied = KINDS[kind]
    trained = train(tmp_path / "adapter", bases[tied], **settings)
    target = tmp_path / "f32.gguf"
    assert distance(bases[tied], trained, target) <= 1e-9
    assert has_output(target) == (not (tied and stays_tied))


@pytest.mark.slow
def test_the_adapter_of_each_kind_makes_a_difference(bases: dict[bool, Path], tmp_path: Path) -> None:
    """So that the proofs above cannot pass by merging nothing: without magnitude or lm_head they fail."""
    trained = train(tmp_path / "adapter", bases[True], use_dora=True, modules_to_save=["lm_head"])
    path = tmp_path / "adapter" / "adapter_model.safetensors"
    whole = load_file(path)
    for mark in ("magnitude", "lm_head", "lora_B"):
        save_file({name: tensor * (1.1 if mark in name else 1.0) for name, tensor in whole.items()}, path)
        assert distance(bases[True], trained, tmp_path / "f32.gguf") > 1e-6


@pytest.mark.slow
def test_a_head_and_an_embedding_saved_apart_for_a_tied_base(bases: dict[bool, Path], tmp_path: Path) -> None:
    """Two different matrices beside the adapter mean that training had untied them."""
    folder = train(tmp_path / "adapter", bases[True], embeddings=True).folder
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors["base_model.model.lm_head.weight"] *= 2
    save_file(tensors, path)
    target = tmp_path / "f32.gguf"
    export(bases[True], folder, {"F32": target}, models.TEMPLATE, "small")
    found = {tensor.name: tensor.data for tensor in gguf.GGUFReader(target).tensors}
    assert (found["output.weight"] == 2 * found["token_embd.weight"]).all()


@pytest.mark.slow
def test_bfloat16_base_and_adapter(tmp_path: Path) -> None:
    base = models.save_model(tmp_path / "base", dtype=torch.bfloat16, **SHAPE)
    trained = train(tmp_path / "adapter", base, use_dora=True, target_modules=BOTH)
    assert distance(base, trained, tmp_path / "f32.gguf") <= 1e-9


# The tokenizer beside the adapter


def exported(base: Path, adapter: Path, target: Path) -> dict[str, Any]:
    export(base, adapter, {"Q8_0": target}, models.TEMPLATE, "small")
    return {key: field.contents() for key, field in gguf.GGUFReader(target).fields.items()}


@pytest.mark.slow
def test_tokens_added_with_a_resized_vocabulary(
    bases: dict[bool, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = bases[True]
    known = Tokenizer.from_file(str(base / "tokenizer.json")).get_vocab_size()
    folder = train(tmp_path / "adapter", base, resize=520).folder
    fields = exported(base, folder, tmp_path / "a.gguf")
    assert fields["llama.vocab_size"] == len(fields["tokenizer.ggml.tokens"]) == 520
    assert fields["tokenizer.ggml.tokens"][-1] == "[PAD519]"
    assert "+8 rows" in capsys.readouterr().err
    models.add_tokens(base, folder, "<|doctor|>", "<|patient|>")
    fields = exported(base, folder, tmp_path / "a.gguf")
    assert fields["tokenizer.ggml.tokens"][known : known + 3] == ["<|doctor|>", "<|patient|>", f"[PAD{known + 2}]"]
    assert fields["tokenizer.ggml.token_type"][known] == int(gguf.TokenType.CONTROL)
    assert "the adapter's own tokenizer" in capsys.readouterr().err


@pytest.mark.slow
def test_a_token_that_no_row_stands_for_is_left_out(bases: dict[bool, Path], tmp_path: Path) -> None:
    """`[PAD]` added without resize_token_embeddings: the model never saw it, and llama.cpp could not look it up."""
    base = bases[True]
    folder = train(tmp_path / "adapter", base).folder
    plain = plan(base, folder, ["Q8_0"]).vocabulary
    models.add_tokens(base, folder, *(f"<|{number}|>" for number in range(200)))
    assert plan(base, folder, ["Q8_0"]).vocabulary == plain == base
    assert "<|3|>" not in exported(base, folder, tmp_path / "a.gguf")["tokenizer.ggml.tokens"]


# What PEFT saved cannot be merged, or lacks a part


def test_a_resized_vocabulary_without_its_head(bases: dict[bool, Path], tmp_path: Path) -> None:
    folder = train(tmp_path / "adapter", bases[False], resize=530, target_modules=EMBEDDED, reload=False).folder
    with pytest.raises(ToolkitError, match=r"from 512 to 530 tokens, but has no `lm_head\.weight` of that size"):
        plan(bases[False], folder, ["F32"])


@pytest.mark.parametrize(
    "kind", ["IA3", "PROMPT_TUNING", "PREFIX_TUNING", "P_TUNING", "ADALORA", "OFT", "VERA", "LOHA"]
)
def test_other_methods_as_peft_saves_them(bases: dict[bool, Path], tmp_path: Path, kind: str) -> None:
    import peft
    from transformers import LlamaForCausalLM

    configs: dict[str, Any] = {
        "IA3": peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        ),
        "PROMPT_TUNING": peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "PREFIX_TUNING": peft.PrefixTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM"),
        "P_TUNING": peft.PromptEncoderConfig(num_virtual_tokens=3, encoder_hidden_size=8, task_type="CAUSAL_LM"),
        "ADALORA": peft.AdaLoraConfig(target_modules=ATTENTION, total_step=10, task_type="CAUSAL_LM"),
        "OFT": peft.OFTConfig(target_modules=ATTENTION, oft_block_size=4, task_type="CAUSAL_LM"),
        "VERA": peft.VeraConfig(target_modules=["q_proj"], r=4, task_type="CAUSAL_LM"),
        "LOHA": peft.LoHaConfig(target_modules=ATTENTION, r=4, task_type="CAUSAL_LM"),
    }
    model = LlamaForCausalLM.from_pretrained(bases[True], dtype=torch.float32)
    peft.get_peft_model(model, configs[kind]).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ToolkitError, match=f"is {kind}, not LORA, and cannot be merged"):
        plan(bases[True], tmp_path / "adapter", ["F32"])


def test_an_untied_head_for_a_family_whose_output_is_its_embedding(
    bases: dict[bool, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from toolkit.export.adapter import weights

    folder = train(tmp_path / "adapter", bases[True], modules_to_save=["lm_head"]).folder
    monkeypatch.setattr(weights, "HEAD_FROM_EMBEDDING", ("llama",))
    with pytest.raises(ToolkitError, match="computes the output of llama from its embedding"):
        plan(bases[True], folder, ["F32"])


@pytest.mark.slow
def test_the_folder_that_the_recipe_leaves(bases: dict[bool, Path], tmp_path: Path) -> None:
    """model.save_pretrained and tokenizer.save_pretrained into one folder, with whatever else they write there."""
    from transformers import AutoTokenizer

    base = bases[False]
    trained = train(tmp_path / "adapter", base, target_modules="all-linear", use_rslora=True)
    AutoTokenizer.from_pretrained(base).save_pretrained(trained.folder)
    assert json.loads((trained.folder / "tokenizer_config.json").read_text())["eos_token"] == "<|end_of_text|>"
    assert distance(base, trained, tmp_path / "f32.gguf") <= 1e-9
    assert plan(base, trained.folder, ["F32"]).vocabulary == base
