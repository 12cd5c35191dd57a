"""The reference layer by layer: the numbers of the whole model, for each family and adapter, in one layer's memory."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers

from tests.support import families, models
from toolkit.core.errors import ToolkitError
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import Record
from toolkit.validate import layers, reference
from toolkit.validate.layers import open_trained

LINEARS = "all-linear"
# Families that transformers has and the exporter may not: each with something of its own in `forward`.
OTHERS: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "Qwen3": {"head_dim": 16},
    "Gemma3Text": {"head_dim": 16, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "Granite": {"embedding_multiplier": 3.0, "residual_multiplier": 0.7, "logits_scaling": 2.0},
    "Cohere": {"logit_scale": 0.5},
    "Olmo2": {},
    "SmolLM3": {"no_rope_layers": [1, 0]},
}  # fmt: skip


def records(vocabulary: int, lengths: tuple[int, ...] = (31, 7, 12)) -> list[Record]:
    draw = np.random.default_rng(0)
    ids = [draw.integers(3, vocabulary, length).tolist() for length in lengths]
    return [Record(row, Prompt(()), "", one, 4) for row, one in enumerate(ids, 1)]


def save_adapter(base: Path, folder: Path, **changes: Any) -> Path:
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(1)
    model = models.load(base, alone=True)
    values = {"task_type": "CAUSAL_LM", "r": 4, "target_modules": LINEARS, "init_lora_weights": False, **changes}
    peft = get_peft_model(model, LoraConfig(**values))
    for name, weight in peft.named_parameters():
        if "modules_to_save" in name or "trainable_tokens" in name:
            weight.data += 0.05 * torch.randn_like(weight)
    peft.save_pretrained(folder)
    return folder


def save_other(folder: Path, name: str) -> Path:
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(
        vocab_size=320, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, initializer_range=0.1, pad_token_id=None, **OTHERS[name],
    )  # fmt: skip
    getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).save_pretrained(folder)
    return folder


def check(base: Path, adapter: Path, spill: Path) -> None:
    """Compare logits and both losses with those of the whole model of transformers and PEFT."""
    from peft import PeftModel

    model = models.load(base, alone=True)  # its attention is not torch's, which leaves out Gemma-2's soft cap
    whole = PeftModel.from_pretrained(model, adapter).eval()
    rows = records(model.config.get_text_config().vocab_size)
    trained, untrained = [], []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.seen])
            trained.append(whole(ids).logits[0, row.first :])
            with whole.disable_adapter():
                untrained.append(whole(ids).logits[0, row.first :])
    targets = torch.tensor(np.concatenate([row.targets for row in rows]))
    with reference.measured(open_trained(base, adapter), rows, spill) as found:
        for values, expected in ((found.nll, trained), (found.base_nll, untrained)):
            losses = torch.nn.functional.cross_entropy(torch.cat(expected).double(), targets, reduction="none")
            np.testing.assert_allclose(values, losses.numpy(), rtol=1e-5, atol=1e-5)
        most = 6e-5 if hasattr(model.config, "linear_num_key_heads") else 2e-5  # the delta rule solves equations
        np.testing.assert_allclose(found.logits[:], torch.cat(trained).numpy(), rtol=1e-5, atol=most)
    assert not torch.allclose(torch.cat(trained), torch.cat(untrained), atol=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("family", [*families.FAMILIES, *families.THAT_SEE])
def test_exported_families_have_the_whole_models_logits(tmp_path: Path, family: str) -> None:
    base = families.save(tmp_path / "base", family)
    check(base, save_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("family", OTHERS)
def test_other_families_have_the_whole_models_logits(tmp_path: Path, family: str) -> None:
    base = save_other(tmp_path / "base", family)
    check(base, save_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(
    "changes",
    [
        {"use_dora": True},
        {"target_modules": ["v_proj"], "modules_to_save": ["lm_head", "embed_tokens"]},
        {"target_modules": ["v_proj"], "trainable_token_indices": [5, 17, 200]},
        {"use_dora": True, "target_modules": ["lm_head", "q_proj"]},
        {"use_rslora": True, "rank_pattern": {"q_proj": 2}},
        {"target_modules": ["embed_tokens", "lm_head", "v_proj"]},
        {"target_modules": ["v_proj"], "modules_to_save": ["norm"]},
    ],
    ids=["DoRA", "saved ends", "trained tokens", "DoRA on the head", "patterns", "LoRA on the ends", "a saved norm"],
)  # fmt: skip
@pytest.mark.parametrize("family", ["llama", "phi4mini"])  # the second one is tied
def test_adapters_of_every_kind(tmp_path: Path, family: str, changes: dict[str, Any]) -> None:
    if family == "phi4mini":
        names = {"q_proj": "qkv_proj", "v_proj": "qkv_proj"}
        changes = {**changes, "target_modules": [names.get(one, one) for one in changes.get("target_modules", [])]}
        changes["target_modules"] = changes["target_modules"] or LINEARS
        changes.pop("rank_pattern", None)
    base = families.save(tmp_path / "base", family)
    check(base, save_adapter(base, tmp_path / "adapter", **changes), tmp_path)


@pytest.mark.slow
def test_weights_in_bf16_and_several_files(tmp_path: Path) -> None:
    base = families.save(tmp_path / "one", "llama", dtype=torch.bfloat16)
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    model.save_pretrained(tmp_path / "base", max_shard_size="200KB")
    assert len(list((tmp_path / "base").glob("*.safetensors"))) > 2
    check(tmp_path / "base", save_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.slow
def test_slices_of_the_head_are_the_whole_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.validate import filling

    monkeypatch.setattr(filling, "SLICE", 256 * 100)  # of 608 rows
    monkeypatch.setattr(layers, "LOGITS", 608 * 5)  # positions at a time
    base = families.save(tmp_path / "base", "gemma2")
    check(base, save_adapter(base, tmp_path / "adapter"), tmp_path)


@pytest.mark.slow
def test_each_weight_is_read_once_for_both_models_and_all_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from toolkit.validate.weights import Weights

    read: list[str] = []
    real = Weights.read

    def counted(self: Weights, name: str, **options: Any) -> Any:
        read.append(name)
        return real(self, name, **options)

    monkeypatch.setattr(Weights, "read", counted)
    base = families.save(tmp_path / "base", "llama")
    trained = open_trained(base, save_adapter(base, tmp_path / "adapter"))
    with reference.measured(trained, records(608), tmp_path):
        pass
    ends = {"model.embed_tokens.weight", "lm_head.weight"}  # read by rows
    assert sorted(read) == sorted({*trained.weights.tensors} - ends)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        ({"model.layers.1.mlp.up_proj.weight": None}, "holds 20 of the model's 21 weights"),
        ({"model.norm.weight": torch.ones(255)}, r"`model.norm.weight` in .* has shape \[255\], not \[256\]"),
        ({"lm_head.weight": torch.ones(608, 256, dtype=torch.int8)}, "is stored as I8"),
    ],
)
def test_a_base_without_its_weights_is_refused_before_anything_is_computed(
    tmp_path: Path, spoil: dict[str, Any], words: str
) -> None:
    from safetensors.torch import load_file, save_file

    base = families.save(tmp_path / "base", "llama")
    adapter = save_adapter(base, tmp_path / "adapter")
    path = base / "model.safetensors"
    weights = {name: spoil.get(name, tensor) for name, tensor in load_file(path).items()}
    save_file({name: tensor for name, tensor in weights.items() if tensor is not None}, path)
    with pytest.raises(ToolkitError, match=words):
        open_trained(base, adapter)


def test_a_large_base_is_not_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "SMALL", 1000)
    base = families.save(tmp_path / "base", "llama")
    trained = open_trained(base, save_adapter(base, tmp_path / "adapter"))
    assert layers.untrained_answers(trained, None, [Prompt(())], 4, ()) == [None]  # type: ignore[arg-type]
