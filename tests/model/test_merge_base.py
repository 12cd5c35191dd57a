"""`export.merge_base`: an adapter goes into the 16-bit weights, or into the 4-bit ones that it was trained on."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.conftest import Called
from tests.support import models
from tests.support.four_bit import quantized_folder
from toolkit import pipeline
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.run_folder import folder_of
from toolkit.model import base, dequantized, merge_base
from toolkit.pipeline import freshness
from toolkit.pipeline.performing import perform


@pytest.fixture
def four(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A 4-bit folder named as the hub's 4-bit repositories are, its 16-bit namesake beside it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    models.save_model(tmp_path / "model", dtype=torch.bfloat16, hidden_size=64, num_attention_heads=4)
    return quantized_folder(tmp_path / "model", tmp_path / "model-bnb-4bit", "nf4", True)


def settings(merge_base: str) -> Config:
    return config_file.build({"model": {"base": "model-bnb-4bit"}, "export": {"merge_base": merge_base}})


def test_which_base_is_merged_into_decides_freshness(four: Path) -> None:
    sixteen, trained = settings("16bit"), settings("as-trained")
    assert base.merge_label(sixteen.model, sixteen.export) == "model"
    assert base.merge_label(trained.model, trained.export) == "model-bnb-4bit"
    for stage in map(pipeline.stage, ("export", "validate")):
        plans = [stage.files(chosen, folder_of(chosen)) for chosen in (sixteen, trained)]
        assert Path("model/model.safetensors") in plans[0].inputs
        assert Path("model-bnb-4bit/model.safetensors") in plans[1].inputs
        found = [pipeline.settings_of(stage, chosen)["export.merge_base"] for chosen in (sixteen, trained)]
        assert found == ["16bit", "as-trained"]


@pytest.mark.slow
def test_an_adapter_from_elsewhere_goes_into_either_base(
    four: Path, tmp_path: Path, toolkit: Callable[..., Called]
) -> None:
    adapter = models.save_adapter(tmp_path / "adapter", dequantized.plain_folder(four))
    known = adapter / "adapter_config.json"
    known.write_text(json.dumps({**json.loads(known.read_text()), "base_model_name_or_path": "model-bnb-4bit"}))
    for into, reference in (("16bit", tmp_path / "model"), ("as-trained", dequantized.plain_folder(four))):
        called = toolkit(
            "export", "--adapter", "adapter", "--quant", "F32", "--output", into,
            "--set", f"export.merge_base={into}", "--json",
        )  # fmt: skip
        assert called.code == 0, called.err
        assert models.kl(reference, adapter, Path(into) / "adapter-F32.gguf") <= 1e-9
    digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in tmp_path.glob("*/adapter-F32.gguf")}
    assert len(digests) == 2


@pytest.mark.slow
def test_four_bits_without_a_namesake_are_refused(four: Path, tmp_path: Path, toolkit: Callable[..., Called]) -> None:
    models.save_adapter(tmp_path / "adapter", dequantized.plain_folder(four))
    four.rename("quantized")
    called = toolkit("export", "--adapter", "adapter", "--base", "quantized", "--output", "out", "--json")
    assert called.code == 1 and "has 4-bit weights" in called.json["error"]
    assert "--base DIR|ID" in called.json["hint"] and "as-trained" in called.json["hint"]


@pytest.mark.slow
def test_validate_holds_the_files_against_the_base_they_were_merged_into(
    four: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.places import REPOSITORY
    from tests.support.warm import train_warm

    train_warm(monkeypatch)
    chosen = config_file.build(
        {
            "run": {"name": "small"},
            "data": {"source": str(REPOSITORY / "data" / "sample.csv")},
            "model": {"base": "model-bnb-4bit"},
            "train": {"max_steps": 2, "max_length": 512, "gradient_checkpointing": False},
            "export": {"quantizations": ["F32"], "default": "F32", "merge_base": "as-trained"},
            "validate": {"rows": 2, "answer_tokens": 4},
        }
    )
    folder = folder_of(chosen)
    for stage in ("prepare", "train", "export", "validate"):
        perform(stage, chosen, folder)
    report = json.loads(folder.report.read_text())
    entry, merge = report["quantizations"]["F32"], report["merge"]
    assert entry["passed"] and entry["mean_kl"] <= 1e-9
    # A CPU trained it on the 16-bit namesake, so 4 bits are what it was not trained on.
    assert (merge["trained_on"], merge["instead"], merge["merged_as_trained"]) == ("model", "model-bnb-4bit", False)
    assert merge["mean_kl"] > 1e-6 and merge["perplexity"] != merge["trained_perplexity"]
    assert {"model/model.safetensors", "model-bnb-4bit/model.safetensors"} <= {
        str(path) for path in pipeline.stage("validate").files(chosen, folder).inputs
    }
    other = chosen.model_copy(update={"export": chosen.export.model_copy(update={"merge_base": "16bit"})})
    assert freshness.state(other, folder)["export"] == "settings changed: export.merge_base"


def test_the_revision_is_of_the_base_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's cache holds a commit of the 4-bit repository and another of its 16-bit namesake."""
    import huggingface_hub.constants as hub

    monkeypatch.setattr(hub, "HF_HUB_CACHE", str(tmp_path))
    for name, commit, ref in (("tiny-bnb-4bit", "a" * 40, "v2"), ("tiny", "b" * 40, "main")):
        repository = tmp_path / f"models--owner--{name}"
        folder = repository / "snapshots" / commit
        folder.mkdir(parents=True)
        (repository / "refs").mkdir()
        (repository / "refs" / ref).write_text(commit)
        for file in ("config.json", "model.safetensors"):
            (folder / file).write_text("{}")
    model = config_file.build({"model": {"base": "owner/tiny-bnb-4bit", "revision": "v2"}}).model
    found = [merge_base.present(label, model) for label in ("owner/tiny-bnb-4bit", "owner/tiny")]
    assert [path.name if path else None for path in found] == ["a" * 40, "b" * 40]
