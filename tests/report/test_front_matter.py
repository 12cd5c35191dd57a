"""The model card's front matter: the hub reads back what is known, and nothing that is not."""

import random
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import ModelCard

from tests.support import reported
from toolkit.core.config_file import build
from toolkit.core.input_settings import MEDQUAD_SHA256
from toolkit.core.manifest import FileRecord, Manifest, StageRecord, read_manifest
from toolkit.core.run_folder import RunFolder
from toolkit.report.facts import gather
from toolkit.report.front_matter import HUB_LICENSES, front_matter

BASE = {"label": "someone/tiny", "commit": "c0ffee", "licence": "apache-2.0"}


def read(base: dict[str, str], name: str = "tiny", manifest: Manifest | None = None) -> dict[str, Any]:
    """What the hub's own reader finds in a card with this front matter."""
    report = reported.report_of(name, random.Random(0)) | {"base": base}
    folder = RunFolder(Path("nowhere") / name, name)
    facts = gather(build({}), folder, manifest or Manifest(run_id="test"), report=report)
    assert facts.report is not None
    text = front_matter(facts, facts.report)
    found = vars(ModelCard(f"---\n{text}\n---\n\n# {name}\n").data)
    return {key: value for key, value in found.items() if value is not None}


def run_of(sha256: str, *stages: str) -> Manifest:
    source = FileRecord(path="somewhere/records.csv", size=1, mtime_ns=1, sha256=sha256)
    record = StageRecord(settings={}, inputs=[source], outputs=[], versions={}, seconds=1.0, finished="now", figures={})
    return Manifest(run_id="test", stages=dict.fromkeys(stages, record))


def test_a_run_on_medquad_is_described_whole() -> None:
    assert read(BASE, manifest=run_of(MEDQUAD_SHA256, "prepare", "train")) == {
        "base_model": "someone/tiny",
        "datasets": ["medquad"],
        "language": "en",
        "library_name": "llama-cpp-python",
        "license": "apache-2.0",
        "model_name": "tiny",
        "tags": ["gguf", "llama-cpp", "lora", "ollama", "medical"],
    }


@pytest.mark.parametrize(
    "manifest",
    [run_of("ab" * 32, "prepare", "train"), run_of(MEDQUAD_SHA256, "prepare"), run_of(MEDQUAD_SHA256, "train")],
    ids=["other data", "an adapter from elsewhere", "no prepared data"],
)
def test_data_that_is_not_known_is_left_out(manifest: Manifest) -> None:
    found = read(BASE, manifest=manifest)
    assert not {"datasets", "language"} & set(found) and "medical" not in found["tags"]


@pytest.mark.parametrize(("found", "stages", "wanted"), [("pt", ("prepare", "train"), "pt"), ("pt", ("prepare",), None),
                                                        ("", ("prepare", "train"), None)])  # fmt: skip
def test_the_language_is_the_one_that_prepare_was_sure_of(found: str, stages: tuple[str, ...], wanted: str) -> None:
    manifest = run_of("ab" * 32, *stages)
    for record in manifest.stages.values():
        record.figures["language"] = found
    assert read(BASE, manifest=manifest).get("language") == wanted


def test_a_base_that_is_not_from_a_hub_is_left_out() -> None:
    assert "base_model" not in read({**BASE, "label": "models/tiny", "commit": ""})


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ("llama3.1", "llama3.1"),
        ("MIT", "mit"),
        ('"gemma"', "gemma"),
        ("Apache License", None),
        ("other", None),
        ("", None),
    ],
)
def test_a_licence_stands_there_only_by_the_hubs_identifier(found: str, wanted: str | None) -> None:
    assert read({**BASE, "licence": found}).get("license") == wanted
    assert wanted is None or wanted in HUB_LICENSES


@pytest.mark.parametrize("name", ["no", "1.0", "0x1F", "2026-11-27", "a---b", "null"])
def test_a_name_that_yaml_could_take_for_something_else_stays_text(name: str) -> None:
    assert read(BASE, name)["model_name"] == name


def test_the_scores_of_the_default_file_are_the_hubs_model_index(run: reported.Reported) -> None:
    facts = gather(run.config, run.folder, read_manifest(run.folder))
    assert facts.report is not None
    data: Any = ModelCard(f"---\n{front_matter(facts, facts.report)}\n---\n").data
    found = {(one.dataset_type, one.metric_type): one.metric_value for one in data.eval_results or []}
    measured = run.evaluation["held_out"]["systems"]["Q4_K_M"]
    exam = run.evaluation["choice"][0]["systems"]["Q4_K_M"]["mean"]
    expected = {("held-out", key): measured[key]["mean"] for key in ("chrf", "rouge_l")} | {("exam", "acc"): exam}
    assert found == expected and data.model_name == "quickstart"


def test_scores_of_other_files_or_none_are_left_out(run: reported.Reported) -> None:
    run.evaluation["held_out"]["systems"]["Q4_K_M"]["chrf"] = None
    run.write()
    facts = gather(run.config, run.folder, read_manifest(run.folder))
    assert facts.report is not None and "type: chrf" not in front_matter(facts, facts.report)
    run.evaluation["systems"][-1]["sha256"] = "ab" * 32
    run.write()
    facts = gather(run.config, run.folder, read_manifest(run.folder))
    assert facts.report is not None and "model-index" not in front_matter(facts, facts.report)
