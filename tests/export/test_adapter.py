"""What cannot be merged is refused by name: other methods, other bases, damaged and half-used adapters."""

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from tests.support import models
from tests.support.damage import Tensors, edit_json, edit_weights, fails, thorough
from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.export import plan


def test_an_adapter_without_weights(work: Path) -> None:
    path = work / "adapter" / "adapter_model.safetensors"
    save_file({}, path)
    fails(work, "is empty")
    path.unlink()
    fails(work, "has no weights")
    (work / "adapter" / "adapter_model.bin").write_bytes(b"pickle")
    fails(work, "pickled weights")
    (work / "adapter" / "adapter_config.json").unlink()
    fails(work, "no `adapter_config.json`")


def test_an_adapter_of_another_base(work: Path) -> None:
    other = models.save_model(work / "other", hidden_size=192, num_attention_heads=6)
    models.save_adapter(work / "stranger", other)
    problem = fails(work, "this adapter belongs to another base", adapter="stranger")
    assert "has shape [256, 512], the adapter's A [8, 512] and B [192, 8]" in problem.message


@pytest.mark.slow
def test_an_adapter_of_a_deeper_base(work: Path) -> None:
    deeper = models.save_model(work / "deeper", num_hidden_layers=4)
    models.save_adapter(work / "stranger", deeper)
    problem = fails(work, "belong to no weight of the base: `base_model.model.model.layers.2.", adapter="stranger")
    assert "and 23 more" in problem.message


def test_half_a_pair(work: Path) -> None:
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    edit_weights(work / "adapter" / "adapter_model.safetensors", lambda tensors: tensors.pop(name))
    fails(work, name.replace("lora_B", "lora_A"))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.embed_tokens.weight", "`model.embed_tokens.weight` has shape [512, 256], the adapter's"),
        ("lm_head.weight", "`lm_head.weight` has shape [512, 256], the adapter's"),
        ("model.layers.0.self_attn.q_proj.lora_magnitude_vector", "lack their counterpart or cannot be merged"),
        ("model.layers.0.self_attn.q_proj.lora_B.bias", "lack their counterpart or cannot be merged"),
        ("model.embed_tokens.lora_embedding_A", "lack their counterpart or cannot be merged"),
        ("model.layers.0.self_attn.q_proj.base_layer.bias", "belong to no weight of the base"),
        ("model.layers.0.mlp.up_proj.lora_E", "belong to no weight of the base"),
        ("model.layers.9.mlp.up_proj.weight", "belong to no weight of the base"),
        ("model.layers.0.self_attn.q_proj.ia3_l", "belong to no weight of the base"),
        ("model.norm.modules_to_save.bias", "belong to no weight of the base"),
    ],
)
def test_every_adapter_tensor_must_be_used(work: Path, name: str, words: str) -> None:
    path = work / "adapter" / "adapter_model.safetensors"
    edit_weights(path, lambda tensors: tensors.update({f"base_model.model.{name}": torch.ones(4)}))
    assert name in fails(work, words).message


def test_tensors_outside_the_model_are_named(work: Path) -> None:
    path = work / "adapter" / "adapter_model.safetensors"
    edit_weights(
        path, lambda tensors: tensors.update({"something.else": torch.ones(4), "lora_A.weight": torch.ones(4)})
    )
    assert "`something.else`" in fails(work, "belong to no weight of the base: `lora_A.weight`").message


def test_a_weight_that_is_there_twice(work: Path) -> None:
    names = [f"base_model.model.lm_head.{form}" for form in ("base_layer.weight", "original_module.weight")]
    path = work / "adapter" / "adapter_model.safetensors"
    edit_weights(path, lambda t: t.update({name: torch.full((512, 256), float(i)) for i, name in enumerate(names)}))
    fails(work, "holds `lm_head.weight` twice, with different values")


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"peft_type": "IA3"}, "is IA3, not LORA"),
        ({"peft_type": "PROMPT_TUNING"}, "is PROMPT_TUNING, not LORA"),
        ({"peft_type": None}, "is None, not LORA"),
        ({"use_dora": True}, "has no lora_magnitude_vector"),
        ({"use_dora": True, "lora_bias": True}, "DoRA with `lora_bias`"),
        ({"modules_to_save": ["lm_head"]}, "names `lm_head` in modules_to_save, but"),
        ({"modules_to_save": "lm_head"}, "no valid `modules_to_save`"),
        ({"trainable_token_indices": [1]}, "names trained tokens"),
        ({"use_qalora": True}, "uses QALoRA"),
        ({"layer_replication": [[0, 1]]}, "replicated layers"),
        ({"target_parameters": ["mlp.experts.gate_up_proj"]}, "LoRA on bare parameters"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"megatron_config": {"x": 1}}, "Megatron"),
        ({"init_lora_weights": "pissa_niter_4"}, "initialised with pissa_niter_4"),
        ({"init_lora_weights": "olora"}, "initialised with olora"),
        ({"r": 0}, "no valid `r`"),
        ({"r": None}, "no valid `r`"),
        ({"lora_alpha": "16"}, "no valid `lora_alpha`"),
        ({"lora_alpha": 10**400}, "`lora_alpha` is a number with too many digits"),
        ({"lora_alpha": float("nan")}, "`lora_alpha` is not a number"),
        ({"rank_pattern": {"q_proj": -1}}, "no valid `rank_pattern`"),
        ({"alpha_pattern": ["q_proj"]}, "no valid `alpha_pattern`"),
        ({"alpha_pattern": {"(": 1}}, "not a valid regular expression"),
        ({"alpha_pattern": {"a{99999999999999999999}": 1}}, "not a valid regular expression"),
        ({"r": 4}, "rank 4, but its lora_A has shape [8, "),
    ],
)
def test_an_adapter_config_that_cannot_be_merged(work: Path, values: dict[str, Any], words: str) -> None:
    edit_json(work / "adapter" / "adapter_config.json", **values)
    fails(work, words)


@pytest.mark.parametrize("indices", [[1], [1, 1], [1, -2], ["a", "b"], "ab", {"embed_tokens": 1}, {}, [1, 600]])
def test_trained_tokens_that_cannot_be(work: Path, indices: Any) -> None:
    edit_json(work / "adapter" / "adapter_config.json", trainable_token_indices=indices)
    name = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"
    path = work / "adapter" / "adapter_model.safetensors"
    edit_weights(path, lambda tensors: tensors.update({name: torch.ones(2, 256)}))
    fails(work, "adapter trains token 600" if indices == [1, 600] else "trained tokens, but `")


@pytest.mark.slow
def test_dora_of_a_row_that_is_zero(work: Path) -> None:
    models.save_adapter(work / "dora", work / "base", use_dora=True)

    def change(tensors: Tensors) -> None:
        tensors["model.layers.1.self_attn.k_proj.weight"][5] = 0

    edit_weights(work / "base" / "model.safetensors", change)
    name = "base_model.model.model.layers.1.self_attn.k_proj.lora_B.weight"
    edit_weights(work / "dora" / "adapter_model.safetensors", lambda tensors: tensors[name].zero_())
    fails(work, "the merged weight `model.layers.1.self_attn.k_proj.weight` holds NaN", adapter="dora")


def test_nan_in_the_adapter(work: Path) -> None:
    name = "base_model.model.model.layers.0.mlp.gate_proj.lora_B.weight"
    edit_weights(work / "adapter" / "adapter_model.safetensors", lambda tensors: tensors[name].fill_(float("nan")))
    fails(work, f"tensor `{name}`")


def test_a_product_beyond_float32(work: Path) -> None:
    def change(tensors: Tensors) -> None:
        for tensor in tensors.values():
            tensor.fill_(1e30)

    edit_weights(work / "adapter" / "adapter_model.safetensors", change)
    fails(work, "the merged weight `model.layers.0.")


@thorough(40, 400)
def test_any_adapter_config_and_any_names(work: Path, examples: int) -> None:
    """Whatever stands in adapter_config.json and whatever the tensors are called: a plan, or a ToolkitError."""
    from safetensors.torch import load_file

    folder = work / "adapter"
    config = json.loads((folder / "adapter_config.json").read_text())
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-3, 10**400) | st.floats() | st.sampled_from(["lm_head", "", "(", "x"]),
        lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(["q_proj", "(", ""]), inner),
        max_leaves=4,
    )
    modules = ["model.layers.0.self_attn.q_proj", "model.embed_tokens", "lm_head", "model.norm", "x", ""]
    forms = [
        "lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_embedding_A", "lora_embedding_B",
        "lora_magnitude_vector",
        "token_adapter.trainable_tokens_delta", "base_layer.weight", "modules_to_save.weight", "original_module.bias",
        "weight", "bias", "", "lora_A.default.weight",
    ]  # fmt: skip
    shapes = st.sampled_from([(8, 256), (256, 8), (512, 256), (8, 512), (256,), (1,), (), (0, 4), (520, 256)])
    names = st.tuples(st.sampled_from(["base_model.model.", ""]), st.sampled_from(modules), st.sampled_from(forms))
    added = st.dictionaries(names.map(lambda parts: f"{parts[0]}{parts[1]}.{parts[2]}"), shapes, max_size=4)
    changed = st.dictionaries(st.sampled_from([*sorted(config), "use_dora", "trainable_token_indices"]), values)
    whole = load_file(folder / "adapter_model.safetensors")

    @settings(max_examples=tries(examples), deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
    @given(changed, added)
    def check(changes: dict[str, Any], tensors: dict[str, tuple[int, ...]]) -> None:
        (folder / "adapter_config.json").write_text(json.dumps({**config, **changes}))
        save_file({**whole, **{k: torch.ones(v) for k, v in tensors.items()}}, folder / "adapter_model.safetensors")
        with contextlib.suppress(ToolkitError):
            plan(work / "base", folder, ["F32"])

    check()
