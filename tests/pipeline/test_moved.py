"""A run that was cut off goes on from its folder alone: copied elsewhere, the original and its data file removed."""

import json
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import call_toolkit
from tests.support import processes
from tests.support.models import save_model
from tests.support.places import REPOSITORY
from tests.support.waiting import wait_while_running
from tests.support.warm import train_warm
from toolkit import Run
from toolkit.core.run_folder import RunFolder

pytestmark = pytest.mark.slow

SETTINGS = """
[run]
name = "small"
folder = "results"
[data]
source = "own.csv"
[model]
base = "BASE"
[train]
max_length = 256
batch_size = 2
gradient_accumulation_steps = 1
gradient_checkpointing = false
learning_rate = 0.02
[export]
quantizations = ["F32"]
default = "F32"
"""
STEPS = 20
EVERY = ["--set", f"train.max_steps={STEPS}", "--set", "train.save_steps=3", "--set", "train.eval_steps=3"]


def copied(source: Path, target: Path) -> None:
    """Copy a folder without its time stamps, as an upload does, and remove the original."""
    shutil.copytree(source, target, copy_function=shutil.copyfile)
    shutil.rmtree(source)


def logged(folder: RunFolder) -> list[dict[str, float]]:
    text = (folder.checkpoints / "train_log.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines() if line.endswith("}")]


def test_a_killed_training_goes_on_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The steps were set on the command line: the folder knows. The best adapter so far moves with it."""
    save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    first = tmp_path / "one machine"
    first.mkdir()
    (first / "toolkit.toml").write_text(SETTINGS.replace("BASE", str(tmp_path / "base")))
    (first / "own.csv").write_bytes((REPOSITORY / "data" / "sample.csv").read_bytes())
    assert call_toolkit("prepare", cwd=first).code == 0
    before = RunFolder(first / "results" / "small", "small")
    process = processes.start("-m", "toolkit", "train", *EVERY, cwd=first, stderr=subprocess.DEVNULL)
    wait_while_running(process, lambda: list(before.checkpoints.glob("*/checkpoint-6/toolkit.json")))
    process.kill()
    assert process.wait() == -signal.SIGKILL
    seen = logged(before)
    records = before.split_file("train").read_bytes()
    place = tmp_path / "another machine" / "drive" / "small"
    copied(before.path, place)
    shutil.rmtree(first)
    monkeypatch.chdir(tmp_path)
    train_warm(monkeypatch)

    run = Run.load(place)
    assert run.folder.path == place and run.config.train.max_steps == STEPS
    assert run.status().stages["prepare"].state == "fresh"
    trained = run.train()
    assert trained.resumed_at_step >= 6 and trained.steps == STEPS
    assert run.folder.split_file("train").read_bytes() == records
    log = [json.loads(line) for line in trained.log.read_text().splitlines()]
    upto = [entry for entry in seen if entry["step"] <= trained.resumed_at_step]
    assert log[: len(upto)] == upto
    losses = {entry["step"]: entry["eval_loss"] for entry in log if "eval_loss" in entry}
    kept = trained.figures["kept_step"]
    assert losses[kept] == min(losses.values()) and trained.held_out_loss_after == losses[kept]
    exported = run.export()
    assert exported.gguf["F32"].is_file() and str(tmp_path / "one machine") not in run.folder.manifest.read_text()
    copied(place, tmp_path / "third" / "small")
    moved = Run.load(tmp_path / "third" / "small")
    assert [moved.perform(stage).fresh for stage in ("prepare", "train", "export")] == [True] * 3
    text = moved.folder.config.read_text()
    assert str(tmp_path / "third") in text and str(place.parent) not in text
