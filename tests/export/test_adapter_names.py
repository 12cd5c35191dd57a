"""Adapters under other names than PEFT's: wrappers' prefixes, MLX; and adapters that do less than they promise."""

import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from tests.support import models
from toolkit.core.errors import ToolkitError
from toolkit.export import export, ordering, plan, standalone
from toolkit.export.adapter.mlx import convert_mlx
from toolkit.export.adapter.names import plain_name

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("names")
    base = models.save_model(folder / "base", **SHAPE)
    return base, models.save_adapter(folder / "adapter", base, rank_pattern={"q_proj": 4})


def changed(adapter: Path, target: Path, change: Callable[[Tensors], Tensors], **config: Any) -> Path:
    """Copy an adapter with other tensors and settings."""
    shutil.copytree(adapter, target)
    path = target / "adapter_model.safetensors"
    save_file(change(load_file(path)), path)
    named = target / "adapter_config.json"
    named.write_text(json.dumps({**json.loads(named.read_text()), **config}))
    return target


def renamed(change: Callable[[str], str]) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {change(name): value for name, value in tensors.items()}


WRAPPED: dict[str, tuple[Callable[[str], str], str]] = {
    "torch.compile around PEFT": (lambda name: f"_orig_mod.{name}", "_orig_mod"),
    "PEFT around torch.compile": (lambda name: name.replace("model.model", "model._orig_mod.model", 1), "_orig_mod"),
    "compiled layers": (lambda name: name.replace(".self_attn", "._orig_mod.self_attn"), "_orig_mod"),
    "DDP": (lambda name: f"module.{name}", "module"),
    "DDP around torch.compile": (lambda name: f"module._orig_mod.{name}", "_orig_mod`, `module"),
    "FSDP": (
        lambda name: "_fsdp_wrapped_module." + name.replace(".mlp", "._fsdp_wrapped_module.mlp"),
        "_fsdp_wrapped_module",
    ),
    "checkpointing": (lambda name: name.replace(".mlp", "._checkpoint_wrapped_module.mlp"), "_checkpoint_wrapped"),
    "DeepSpeed, Lightning": (lambda name: f"_forward_module.model.{name}", "_forward_module"),
    "PEFT in PEFT": (lambda name: f"base_model.model.{name}", "base_model.model"),
    "TRL's value head": (lambda name: f"pretrained_model.{name}", "pretrained_model"),
    "a policy": (lambda name: f"policy.{name}", "policy"),
    "a class around it": (lambda name: f"_model.model.{name}", "_model"),
    "a model that also sees": (
        lambda name: name.replace("base_model.model.", "base_model.model.language_model.", 1), "language_model"
    ),
    "a model that also sees, newer": (
        lambda name: name.replace("base_model.model.model.", "base_model.model.model.language_model."), "language_model"
    ),
    "DDP around a policy around torch.compile": (lambda name: f"module.policy._orig_mod.{name}", "module`, `policy"),
    "a state dict": (lambda name: name.replace(".weight", ".default.weight"), "default"),
    "no prefix": (lambda name: name.removeprefix("base_model.model."), ""),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("wrapped", WRAPPED)
def test_wrappers_prefixes_are_taken_off(
    made: tuple[Path, Path], tmp_path: Path, wrapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base, adapter = made
    change, said = WRAPPED[wrapped]
    other = changed(adapter, tmp_path / "adapter", renamed(change))
    export(base, adapter, {"F32": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "removed from the names" not in capsys.readouterr().err
    export(base, other, {"F32": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    heard = capsys.readouterr().err
    assert f"`{said}" in heard if said else "removed from the names" not in heard
    assert heard.count("removed from the names") == (1 if said else 0)
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_wrappers_in_the_settings_patterns(made: tuple[Path, Path], tmp_path: Path) -> None:
    """PEFT matched them with the names of the wrapped model."""
    base, adapter = made
    patterns = {
        "rank_pattern": {"_orig_mod.self_attn.q_proj": 4},
        "alpha_pattern": {r"\d\._orig_mod\.self_attn\.q_proj": 3},
    }
    change, _ = WRAPPED["compiled layers"]
    wrapped = changed(adapter, tmp_path / "wrapped", renamed(change), **patterns)
    plain = changed(adapter, tmp_path / "plain", dict, rank_pattern={"q_proj": 4}, alpha_pattern={"q_proj": 3})
    for folder in (wrapped, plain):
        export(base, folder, {"F32": tmp_path / f"{folder.name}.gguf"}, models.TEMPLATE, "x")
    assert (tmp_path / "wrapped.gguf").read_bytes() == (tmp_path / "plain.gguf").read_bytes()


def test_two_names_that_become_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    def twice(tensors: Tensors) -> Tensors:
        return {**tensors, **{f"module.{name}": value + 1 for name, value in list(tensors.items())[:1]}}

    with pytest.raises(ToolkitError, match=r"holds `.+` and `.+`, which are one tensor without") as caught:
        plan(made[0], changed(made[1], tmp_path / "adapter", twice), ["F16"])
    assert "unwrap" in caught.value.hint


@pytest.mark.parametrize("names", [("default", "other"), ("code", "law", "math")])
def test_a_state_dict_of_several_adapters(made: tuple[Path, Path], tmp_path: Path, names: tuple[str, ...]) -> None:
    def several(tensors: Tensors) -> Tensors:
        return {
            name.replace(".weight", f".{adapter}.weight"): value for name, value in tensors.items() for adapter in names
        }

    adapter = changed(made[1], tmp_path / "adapter", several)
    with pytest.raises(ToolkitError, match=f"a state dict of {len(names)} adapters: `{names[0]}`, `{names[1]}`") as got:
        plan(made[0], adapter, ["F16"])
    assert f"selected_adapters=['{names[0]}']" in got.value.hint


MODELS = {
    "torch.compile": lambda name: f"_orig_mod.{name}",
    "DDP": lambda name: f"module.{name}",
    "FSDP": lambda name: f"_fsdp_wrapped_module.{name.replace('.mlp', '._fsdp_wrapped_module.mlp')}",
    "TRL's value head": lambda name: f"pretrained_model.{name}",
    "a policy": lambda name: f"policy.{name}",
    "a class around it": lambda name: f"_model.{name}",
}


@pytest.mark.parametrize("wrapped", MODELS)
def test_a_whole_model_in_wrappers(
    made: tuple[Path, Path], tmp_path: Path, wrapped: str, capsys: pytest.CaptureFixture[str]
) -> None:
    base = Path(shutil.copytree(made[0], tmp_path / "base"))
    path = base / "model.safetensors"
    save_file({MODELS[wrapped](name): value for name, value in load_file(path).items()}, path)
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "removed from the names of its tensors" in capsys.readouterr().err
    export(made[0], None, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()
    assert "removed" not in capsys.readouterr().err


def test_two_names_of_a_whole_model_that_become_one(made: tuple[Path, Path], tmp_path: Path) -> None:
    base = Path(shutil.copytree(made[0], tmp_path / "base"))
    path = base / "model.safetensors"
    values = load_file(path)
    save_file({**values, **{f"module.{name}": value for name, value in list(values.items())[:1]}}, path)
    with pytest.raises(ToolkitError, match="which are one tensor without their wrappers' prefixes"):
        export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")


def test_strangers_are_named_as_they_are_in_the_file(made: tuple[Path, Path], tmp_path: Path) -> None:
    other = changed(made[1], tmp_path / "adapter", renamed(lambda name: f"vision.{name}"))
    with pytest.raises(ToolkitError, match=r"belong to no weight of the base: `vision\.base_model\.model"):
        plan(made[0], other, ["F16"])


@pytest.mark.parametrize(
    "name",
    [
        "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight",
        "base_model.model.lm_head.lora_B.weight",
        "base_model.model.model.embed_tokens.lora_embedding_A",
        "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector",
        "base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector.weight",
        "base_model.model.model.layers.1.mlp.down_proj.lora_B.bias",
        "base_model.model.lm_head.modules_to_save.weight",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "base_model.model.model.norm.weight",
    ],
)
def test_pefts_own_names_stay(name: str) -> None:
    assert plain_name(name) == (name, [])
    raw = name
    for part in ("lora_A", "lora_B", "lora_embedding_A", "lora_magnitude_vector", "modules_to_save"):
        raw = raw.replace(f".{part}", f".{part}.other")
    assert plain_name(raw)[0] == name


# MLX.


def mlx(adapter: Path, target: Path, *, alpha: float | None = None, **settings: Any) -> Path:
    """Write a PEFT adapter of rank 8 and alpha 16 as mlx_lm.lora would have: transposed, its scale in the settings."""
    target.mkdir()
    values = {}
    for name, value in load_file(adapter / "adapter_model.safetensors").items():
        short = name.removeprefix("base_model.model.").replace(".lora_magnitude_vector", ".m")
        short = short.replace(".lora_A.weight", ".lora_a").replace(".lora_B.weight", ".lora_b")
        short = short.replace(".lora_embedding_A", ".lora_a").replace(".lora_embedding_B", ".lora_b")
        values[short] = np.ascontiguousarray(value.T)
    save_file(values, target / "adapters.safetensors")
    parameters: dict[str, Any] = {"rank": 8, "dropout": 0.0, "scale": 2.0}
    if alpha is not None:  # as releases of 2024 wrote it
        parameters = {"rank": 8, "alpha": alpha, "dropout": 0.0, "scale": 16 / alpha}
    config = {"fine_tune_type": "lora", "lora_parameters": parameters, "num_layers": 16, "train": True, **settings}
    (target / "adapter_config.json").write_text(json.dumps(config))
    return target


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "alpha", "kind"),
    [
        ({}, None, "lora"),
        ({}, 32.0, "lora"),
        ({"use_dora": True}, None, "dora"),
        ({"target_modules": ["embed_tokens", "q_proj", "lm_head"]}, None, "lora"),
    ],
)
def test_an_mlx_adapter_is_merged(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any],
    alpha: float | None, kind: str,
) -> None:  # fmt: skip
    base = made[0]
    peft = models.save_adapter(tmp_path / "peft", base, **settings)
    adapter = mlx(peft, tmp_path / "mlx", alpha=alpha, fine_tune_type=kind, model=str(base))
    monkeypatch.chdir(tmp_path)
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    figures = standalone.carry_out(order, "gguf", ("F32",), "out", dry_run=False, force=False)
    path = Path(figures["files"]["F32"]["path"])
    assert path.name == "mlx-F32.gguf"
    assert models.kl(base, peft, path, 64) <= 1e-9 < models.kl(base, None, path, 64)


@pytest.mark.slow
def test_an_mlx_adapter_in_other_forms(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = made[0]
    adapter = mlx(models.save_adapter(tmp_path / "peft", base), tmp_path / "mlx", model=str(base))
    (adapter / "0000100_adapters.safetensors").write_bytes(b"an earlier state")
    monkeypatch.chdir(tmp_path)
    for form in ("lora-gguf", "safetensors"):
        order = ordering.of_adapter(adapter, None, "none.toml", ())
        assert standalone.carry_out(order, form, (), "out", dry_run=True, force=False)["files"]
        assert standalone.carry_out(order, form, (), "out", dry_run=False, force=False)["files"]


@pytest.mark.parametrize(
    ("settings", "change", "words"),
    [
        ({"fine_tune_type": "full"}, dict, "fine-tuning type `full`"),
        ({}, renamed(lambda name: name.replace("lora_a", "weight")), "which is not LoRA"),
        ({}, lambda tensors: dict(list(tensors.items())[1:]), "no pair of LoRA matrices"),
        ({}, lambda tensors: {**tensors, "model.embed_tokens.m": np.ones(4, np.float32)}, "no pair of LoRA matrices"),
    ],
)
def test_what_mlx_must_merge_itself(
    made: tuple[Path, Path], tmp_path: Path, settings: dict[str, Any], change: Callable[[Tensors], Tensors], words: str
) -> None:
    adapter = mlx(models.save_adapter(tmp_path / "peft", made[0]), tmp_path / "mlx", model=str(made[0]), **settings)
    save_file(change(load_file(adapter / "adapters.safetensors")), adapter / "adapters.safetensors")
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    with pytest.raises(ToolkitError, match=words) as caught:
        standalone.carry_out(order, "gguf", ("F32",), str(tmp_path / "out"), dry_run=False, force=False)
    assert "mlx_lm.fuse" in caught.value.hint and "toolkit export --model" in caught.value.hint


@pytest.mark.parametrize("left", ["checkpoints", "half a file", "half a file alone", "no settings"])
def test_what_a_broken_off_mlx_training_left(
    made: tuple[Path, Path], tmp_path: Path, left: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The hint says how to go on; the checkpoint that it names is exported."""
    adapter = mlx(models.save_adapter(tmp_path / "peft", made[0]), tmp_path / "my mlx", model=str(made[0]))
    weights = adapter / "adapters.safetensors"
    monkeypatch.chdir(tmp_path)
    for number in ("0000100", "0000200") if "alone" not in left and left != "no settings" else ():
        shutil.copyfile(weights, adapter / f"{number}_adapters.safetensors")
    if left == "checkpoints":
        weights.unlink()
    elif left == "no settings":
        (adapter / "adapter_config.json").unlink()
    else:
        weights.write_bytes(weights.read_bytes()[:300])
    with pytest.raises(ToolkitError) as caught:
        ordering.of_adapter(adapter, None, "none.toml", ())
    if "cp " in caught.value.hint:
        words = shlex.split(caught.value.hint.partition(": ")[2])
        assert words[1].endswith("0000200_adapters.safetensors")
        shutil.copyfile(words[1], words[2])
    elif left == "no settings":
        text = caught.value.hint.partition("values: ")[2].replace("BASE", str(made[0]))
        (adapter / "adapter_config.json").write_text(text)
    else:
        assert left == "half a file alone" and "train again" in caught.value.hint
        return
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    assert standalone.carry_out(order, "gguf", ("F32",), "out", dry_run=False, force=False)["files"]


@pytest.mark.parametrize(
    ("settings", "keys", "without", "said"),
    [
        ({"num_layers": 2}, None, "layers.0.mlp", "11 of 14 modules"),
        ({"num_layers": -1}, None, "layers.1.", "7 of 14 modules"),
        ({"lora_layers": 2}, None, "layers.0.", "7 of 14 modules"),
        ({"num_layers": 1}, None, "layers.0.", ""),
        ({"num_layers": 16}, None, "q_proj", ""),
        ({"num_layers": 16}, ["self_attn.q_proj", "self_attn.v_proj"], "q_proj", "12 of 14 modules"),
        ({}, ["self_attn.q_proj", "self_attn.v_proj"], " ", ""),
    ],
)
def test_modules_that_an_mlx_training_names_and_lacks(
    made: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any],
    keys: list[str] | None, without: str, said: str, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    adapter = mlx(models.save_adapter(tmp_path / "peft", made[0]), tmp_path / "mlx", model=str(made[0]))
    path = adapter / "adapters.safetensors"
    save_file({name: value for name, value in load_file(path).items() if without not in name}, path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["num_layers"]
    if keys:
        config["lora_parameters"]["keys"] = keys
    (adapter / "adapter_config.json").write_text(json.dumps({**config, **settings}))
    monkeypatch.chdir(tmp_path)
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    standalone.carry_out(order, "gguf", ("F16",), "out", dry_run=True, force=False)
    heard = " ".join(capsys.readouterr().err.split())
    assert f"the adapter has LoRA for {said} that it names" in heard if said else "that it names" not in heard


def test_a_command_for_mlx_with_spaces_in_its_names(made: tuple[Path, Path], tmp_path: Path) -> None:
    adapter = mlx(made[1], tmp_path / "my 'own' adapter", model="a base", fine_tune_type="full")
    with pytest.raises(ToolkitError, match="fine-tuning type") as caught:
        convert_mlx(adapter, tmp_path)
    words = shlex.split(caught.value.hint.partition(": ")[2].partition(" (")[0])
    assert words[2] == "a base" and words[4] == str(adapter)


# What the settings promise and the weights do not hold.


def only(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {name: value for name, value in tensors.items() if any(part in name for part in parts)}


@pytest.mark.parametrize(
    ("keep", "config", "said"),
    [
        (("layers.0",), {}, "LoRA for 7 of 14 modules that it names; unchanged: `model.layers.1.self_attn.q_proj`"),
        (("_proj",), {"target_modules": "all-linear"}, ""),
        (("q_proj",), {"target_modules": "all-linear"}, "LoRA for 2 of 14"),
        (("q_proj",), {"target_modules": r".*\.(q|k)_proj"}, "LoRA for 2 of 4"),
        (("layers.1",), {"layers_to_transform": [1]}, ""),
        (
            ("1.self_attn.q_proj",),
            {"layers_to_transform": 1, "target_modules": ["q_proj", "v_proj"]},
            "LoRA for 1 of 2",
        ),
        (("q_proj",), {"target_modules": ["q_proj", "k_proj"], "exclude_modules": ["k_proj"]}, ""),
        (("q_proj",), {"target_modules": ["q_proj", "lm_head"]}, "LoRA for 2 of 3"),
    ],
)
def test_modules_that_are_named_and_absent(
    made: tuple[Path, Path], tmp_path: Path, keep: tuple[str, ...], config: dict[str, Any], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    adapter = changed(made[1], tmp_path / "adapter", only(*keep), **config)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    heard = capsys.readouterr().err
    assert (said in heard) if said else "warning" not in heard


# What the weights hold and the settings leave out.


ALL = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LEFT_OUT: dict[str, tuple[dict[str, Any], str, int]] = {
    "fewer modules": ({"target_modules": ["q_proj"]}, "target_modules", 12),
    "a typing error": ({"target_modules": ["qproj"]}, "target_modules", 14),
    "a part of a name": ({"target_modules": ["proj"]}, "target_modules", 14),
    "an expression": ({"target_modules": r".*\.layers\.0\..*q_proj"}, "target_modules", 13),
    "an expression for a part of the name": ({"target_modules": "q_proj"}, "target_modules", 14),
    "fewer layers": ({"layers_to_transform": [0]}, "layers_to_transform", 7),
    "one layer": ({"layers_to_transform": 1, "layers_pattern": "layers"}, "layers_to_transform", 7),
    "layers of another name": ({"layers_to_transform": [0, 1], "layers_pattern": ["h"]}, "layers_to_transform", 14),
    "an exclusion": ({"exclude_modules": ["q_proj"]}, "exclude_modules", 2),
    "an exclusion's expression": ({"exclude_modules": r".*mlp.*"}, "exclude_modules", 6),
    "all but some": ({"target_modules": "all-linear", "exclude_modules": ["mlp.up_proj"]}, "exclude_modules", 2),
    "an exclusion, no targets": ({"target_modules": None, "exclude_modules": ["q_proj"]}, "exclude_modules", 2),
    "layers, no targets": ({"target_modules": None, "layers_to_transform": [0]}, "layers_to_transform", 7),
}  # fmt: skip


def named_by_peft(base: Path, config: dict[str, Any]) -> set[str]:
    """The modules that PEFT itself gives LoRA for these settings; it refuses settings that name none."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    model: Any = LlamaForCausalLM.from_pretrained(base)
    try:
        return set(get_peft_model(model, LoraConfig(**{"target_modules": ALL, **config})).targeted_module_names)
    except ValueError:
        return set()


@pytest.mark.parametrize("case", LEFT_OUT)
def test_weights_that_the_settings_leave_out(made: tuple[Path, Path], tmp_path: Path, case: str) -> None:
    """PEFT would load them nowhere; nobody knows what was trained."""
    config, key, count = LEFT_OUT[case]
    adapter = changed(made[1], tmp_path / "adapter", dict, **config)
    with pytest.raises(ToolkitError, match=rf"for 14 modules, but `{key}` in adapter_config.json leaves out") as caught:
        plan(made[0], adapter, ["F16"])
    assert f"leaves out {count} of them: `model.layers." in caught.value.message and "\n" not in caught.value.message
    assert f"correct `{key}`" in caught.value.hint and "delete" in caught.value.hint
    if config.get("target_modules", ALL):
        assert 14 - len(named_by_peft(made[0], config)) == count


@pytest.mark.parametrize(
    "config",
    [
        {"target_modules": "all-linear"},
        {"target_modules": "ALL-linear"},
        {"target_modules": r".*\.(self_attn|mlp)\.(\w+_)+proj|.*\.[qkvo]_proj"},
        {"target_modules": [f"model.layers.{layer}.{part}" for layer in (0, 1) for part in (
            "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj",
            "mlp.up_proj", "mlp.down_proj")], "layers_to_transform": [5]},
        {"layers_to_transform": []},
        {"layers_to_transform": [0, 1], "layers_pattern": ["blocks", "layers"]},
        {"exclude_modules": ["lm_head", "proj"]},
        {"exclude_modules": []},
    ],
)  # fmt: skip
def test_settings_that_name_all_weights(
    made: tuple[Path, Path], tmp_path: Path, config: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = changed(made[1], tmp_path / "adapter", dict, **config)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "warning" not in capsys.readouterr().err
    assert len(named_by_peft(made[0], config)) == 14


@pytest.mark.parametrize("targets", [None, [], ""])
def test_settings_without_targets_are_warned_of(
    made: tuple[Path, Path], tmp_path: Path, targets: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    """Older files and other tools leave them out; the weights then say what was trained."""
    export(made[0], made[1], {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "warning" not in capsys.readouterr().err
    adapter = changed(made[1], tmp_path / "adapter", dict, target_modules=targets)
    export(made[0], adapter, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    assert "names no `target_modules`: LoRA is merged for all 14 modules" in capsys.readouterr().err
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


@pytest.mark.parametrize(("trained", "key"), [("modules_to_save.weight", "modules_to_save"), ("bias", "lora_bias")])
def test_other_trained_weights_that_the_settings_leave_out(tmp_path: Path, trained: str, key: str) -> None:
    base = models.save_model(tmp_path / "base", attention_bias=True, **SHAPE)
    settings: dict[str, Any] = {"lora_bias": True} if key == "lora_bias" else {"modules_to_save": ["norm"]}
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["q_proj"], **settings)
    change = renamed(lambda name: name.replace("norm.weight", f"norm.{trained}"))
    plan(base, changed(adapter, tmp_path / "named", change), ["F16"])
    with pytest.raises(ToolkitError, match=f"but `{key}` in adapter_config.json leaves out"):
        plan(base, changed(adapter, tmp_path / "unnamed", change, **dict.fromkeys(settings)), ["F16"])


@pytest.mark.slow
def test_a_tied_end_is_named_by_the_other(tmp_path: Path) -> None:
    """With ensure_weight_tying PEFT names lm_head if embed_tokens is named."""
    base = models.save_model(tmp_path / "base", **SHAPE)
    adapter = models.save_adapter(tmp_path / "adapter", base, target_modules=["q_proj", "embed_tokens", "lm_head"])
    config = {"target_modules": ["q_proj", "embed_tokens"]}
    plan(base, changed(adapter, tmp_path / "tied", dict, ensure_weight_tying=True, **config), ["F16"])
    with pytest.raises(ToolkitError, match="leaves out 1 of them: `lm_head`"):
        plan(base, changed(adapter, tmp_path / "apart", dict, **config), ["F16"])


def zeroed(*parts: str) -> Callable[[Tensors], Tensors]:
    return lambda tensors: {
        name: np.zeros_like(value) if all(part in name for part in parts) else value for name, value in tensors.items()
    }


@pytest.mark.parametrize(
    ("parts", "config", "said"),
    [
        (("lora_B",), {}, "this adapter changes nothing: 14 of 14 LoRA products are all zeros"),
        (("lora_A",), {}, "this adapter changes nothing"),
        (("lora_B", "q_proj"), {}, "2 of 14 LoRA products are all zeros: these modules stay unchanged"),
        ((" ",), {"lora_alpha": 0}, "this adapter changes nothing"),
        ((" ",), {}, ""),
    ],
)
def test_an_adapter_that_changes_nothing(
    made: tuple[Path, Path], tmp_path: Path, parts: tuple[str, ...], config: dict[str, Any], said: str,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    adapter = changed(made[1], tmp_path / "adapter", zeroed(*parts), **config)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    heard = capsys.readouterr().err
    assert (said in heard) if said else "warning" not in heard


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (1e-12, "this adapter changes nothing: 14 of 14 LoRA products are too small to change a weight"),
        (1e-38, "this adapter changes nothing"),
        (1e-3, ""),
    ],
)
@pytest.mark.parametrize("dry", [True, False])
def test_a_product_too_small_for_any_weight(
    made: tuple[Path, Path], tmp_path: Path, factor: float, said: str, dry: bool,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def smaller(tensors: Tensors) -> Tensors:
        return {name: value * np.float32(factor if "lora_B" in name else 1) for name, value in tensors.items()}

    adapter = changed(made[1], tmp_path / "adapter", smaller, base_model_name_or_path=str(made[0]))
    monkeypatch.chdir(tmp_path)
    order = ordering.of_adapter(adapter, None, "none.toml", ())
    standalone.carry_out(order, "gguf", ("F16",), "out", dry_run=dry, force=False)
    heard = " ".join(capsys.readouterr().err.split())
    assert (said in heard) if said else "changes nothing" not in heard


@pytest.mark.parametrize("targets", [["q_proj", "down_proj"], ["embed_tokens", "lm_head"]])
@pytest.mark.parametrize("form", ["bf16", "f32"])
def test_dora_as_training_begins_with_it_changes_nothing(
    made: tuple[Path, Path], tmp_path: Path, targets: list[str], form: str, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = models.save_adapter(tmp_path / "dora", made[0], use_dora=True, target_modules=targets)
    path, base = adapter / "adapter_model.safetensors", load_file(made[0] / "model.safetensors")
    values = zeroed("lora_B")(load_file(path))
    values = zeroed("lora_embedding_B")(values)
    for name in values:
        if "magnitude" in name:
            module = name.removeprefix("base_model.model.").partition(".lora_magnitude")[0]
            weight = base[f"{module}.weight"] if f"{module}.weight" in base else base["model.embed_tokens.weight"]
            norm = np.linalg.norm(weight.astype(np.float32), axis=0 if "embed_tokens" in module else 1)
            rounded = torch.from_numpy(norm).bfloat16().float().numpy() if form == "bf16" else norm
            values[name] = rounded.reshape(values[name].shape)
    save_file(values, path)
    export(made[0], adapter, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "x")
    assert "this adapter changes nothing" in capsys.readouterr().err
    name = next(name for name in values if "magnitude" in name)
    save_file({**values, name: values[name] * np.float32(1.1)}, path)
    export(made[0], adapter, {"F16": tmp_path / "b.gguf"}, models.TEMPLATE, "x")
    assert "this adapter changes nothing" not in capsys.readouterr().err


@pytest.mark.slow
def test_other_training_beside_zeros_is_no_nothing(
    made: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """DoRA's magnitudes change a weight even where B is zero, and so does a trained norm."""
    for name, settings in (("dora", {"use_dora": True}), ("norm", {"modules_to_save": ["norm"]})):
        adapter = models.save_adapter(tmp_path / name, made[0], **settings)
        path = adapter / "adapter_model.safetensors"
        save_file(zeroed("lora_B")(load_file(path)), path)
        export(made[0], adapter, {"F16": tmp_path / f"{name}.gguf"}, models.TEMPLATE, "x")
    assert "changes nothing" not in capsys.readouterr().err


@pytest.mark.slow
def test_real_compiled_models(made: tuple[Path, Path], tmp_path: Path) -> None:
    """PEFT on a base whose layers torch.compile wrapped, and on one that it wrapped whole."""
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaForCausalLM

    whole: Any = torch.compile(LlamaForCausalLM.from_pretrained(made[0]))
    layers: Any = LlamaForCausalLM.from_pretrained(made[0])
    layers.model.layers[1] = torch.compile(layers.model.layers[1])
    for name, model in (("whole", whole), ("layers", layers)):
        torch.manual_seed(2)
        peft = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "down_proj"], init_lora_weights=False))
        peft.save_pretrained(tmp_path / name)
        assert any("_orig_mod" in key for key in load_file(tmp_path / name / "adapter_model.safetensors"))
        export(made[0], tmp_path / name, {"F32": tmp_path / f"{name}.gguf"}, models.TEMPLATE, "x")
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "layers.gguf").read_bytes()
