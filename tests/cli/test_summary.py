"""What a stage says at its end is what it did: figures of real runs, held to the files and the server."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from tests.register.conftest import make_run
from tests.support.models import save_model
from tests.support.ollama_server import OllamaServer
from tests.support.places import REPOSITORY
from tests.support.warm import train_warm
from toolkit.cli import summary
from toolkit.core import config_file, console
from toolkit.core.config import Config
from toolkit.core.records import Records
from toolkit.core.run_folder import folder_of
from toolkit.pipeline.findings import Finished
from toolkit.pipeline.performing import perform
from toolkit.pipeline.results import Done


def small(folder: Path) -> Config:
    """Settings of a run below a folder, on a small model and the sample data."""
    save_model(folder / "base", hidden_size=64, intermediate_size=128)
    return config_file.build(
        {
            "run": {"name": "small", "folder": str(folder)},
            "data": {"source": str(REPOSITORY / "data" / "sample.csv")},
            "model": {"base": str(folder / "base")},
            "train": {"max_steps": 2, "max_length": 512, "gradient_checkpointing": False},
            "export": {"quantizations": ["F32", "Q8_0"], "default": "Q8_0"},
            "validate": {"rows": 3, "max_kl": {"Q8_0": 0.1}, "answer_tokens": 4},
        }
    )


def said(stage: str, config: Config) -> tuple[Done, str]:
    """Perform a stage; return its figures and its text as one line, after the JSON was held to the figures."""
    done = perform(stage, config, folder_of(config))
    payload, text = summary.of(done, folder_of(config))
    assert payload["stage"] == stage and payload.items() >= done.figures.items() and json.dumps(payload)
    return done, " ".join(text.split())


@pytest.mark.slow
def test_prepare_counts_what_is_in_its_files(tmp_path: Path) -> None:
    config = small(tmp_path)
    done, text = said("prepare", config)
    counts = {side: len(Records(folder_of(config).split_file(side))) for side in ("train", "val", "test")}
    assert all(f"{count:,} {side}" in text for side, count in counts.items())
    assert f"{sum(counts.values()):,} kept" in text and f"{done.figures['rows']:,} rows" in text
    again = perform("prepare", config, folder_of(config))
    _, whole = summary.of_run(Finished((done, again), folder_of(config).path, registered=False, warnings=()))
    assert (
        whole.partition(":")[0].count("prepare") == 1 and str(folder_of(config).path) in whole
    )  # what was fresh took no time


@pytest.mark.slow
def test_each_stage_behind_it_shows_its_files_and_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train_warm(monkeypatch)
    config = small(tmp_path)
    folder = folder_of(config)
    said("prepare", config)
    _, trained = said("train", config)
    log = [json.loads(line) for line in folder.train_log.read_text().splitlines()]
    held_out = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert f"{held_out[0]:.4f} → {held_out[-1]:.4f}" in trained and "2 steps" in trained
    _, exported = said("export", config)
    for quantization in ("F32", "Q8_0"):
        assert console.size(folder.gguf(quantization).stat().st_size) in exported
    _, validated = said("validate", config)
    report = json.loads(folder.report.read_text())
    assert all(name in validated for name in report["quantizations"]) and folder.report.name in validated


@pytest.mark.ollama
def test_register_shows_what_the_server_holds_and_where_answers_part(tmp_path: Path, server: OllamaServer) -> None:
    run = make_run(tmp_path, server.url, "shown")
    figures: dict[str, Any] = run.register().figures
    held = run.held()
    done = Done("register", fresh=False, why="", seconds=1.0, figures=figures)
    payload, text = summary.of(done, run.folder)
    assert payload["tags"] == figures["tags"] and server.url in text
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip().startswith("shown:")}
    assert {*rows} >= {f"shown:{tag}" for tag in held}
    for tag, digest in held.items():
        assert digest[:12] in rows[f"shown:{tag}"]
    parted = copy.deepcopy(figures)  # the real answers, but for one
    answer = parted["tags"]["f16"]["greedy"][0]
    answer["ollama"] = answer["llama.cpp"][:2] + "another end"
    _, text = summary.of(Done("register", fresh=False, why="", seconds=1.0, figures=parted), run.folder)
    lines = [line for line in text.splitlines() if line.startswith("shown:f16 asked")]
    assert len(lines) == 1 and "after 2 equal characters" in lines[0] and "'another end'" in lines[0]
    assert repr(answer["llama.cpp"][2:42]) in lines[0]
