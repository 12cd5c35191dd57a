"""The log, the checkpoints' marks, the plot, and the choice of backend."""

import json
import sys
import types
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from toolkit import machine
from toolkit.config import Config, TrainSettings
from toolkit.errors import MISSING, ToolkitError
from toolkit.run import RunFolder
from toolkit.train import backend, checkpoints, choice, plot, schedule, unsloth_backend
from toolkit.train.log import LogKeeper


def test_the_log_is_cut_back_to_the_step_of_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    log = LogKeeper(path, 0)
    log.add({"step": 0, "held_out_loss": 3.0})
    for step in (1, 2, 3):
        log.add({"step": step, "loss": 1.0 / step})
    path.write_text(path.read_text() + '{"step": 4, "lo')  # killed while writing
    again = LogKeeper(path, 2)
    assert [entry["step"] for entry in again.entries] == [0, 1, 2]
    assert again.held_out(0) == 3.0 and again.held_out(1) is None
    assert LogKeeper(path, 0).entries == []


def save(folder: Path, step: int, fingerprint: str, loss: float | None = None) -> checkpoints.Checkpoint:
    weights = {"a": torch.full((2,), float(step))}
    state = {"optimizer": {"step": torch.tensor(step)}}
    return checkpoints.write(folder, fingerprint, step, 10 * step, weights, state, loss)


def test_only_a_whole_checkpoint_of_the_same_run_counts(tmp_path: Path) -> None:
    assert checkpoints.latest(tmp_path, "a") is None
    save(tmp_path, 9, "a")
    save(tmp_path, 20, "a")
    save(tmp_path, 30, "b")
    (tmp_path / "checkpoint-40").mkdir()
    (tmp_path / "checkpoint-50").mkdir()
    (tmp_path / "checkpoint-50" / checkpoints.MARKER).write_text("{")
    found = checkpoints.latest(tmp_path, "a")
    assert found == checkpoints.Checkpoint(tmp_path / "checkpoint-20", 20, 200)
    weights, state = checkpoints.read(found)
    assert weights["a"].tolist() == [20, 20] and state["optimizer"]["step"] == 20


def test_two_checkpoints_and_the_best_one_are_kept(tmp_path: Path) -> None:
    for step, loss in ((1, 3.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, None), (6, None)):
        save(tmp_path, step, "a", loss)
    assert [found.step for found in checkpoints.whole(tmp_path, "a")] == [2, 5, 6]
    best = checkpoints.best(tmp_path, "a")
    assert best is not None and (best.step, best.held_out_loss) == (2, 1.0)
    assert checkpoints.best(tmp_path, "b") is None


@pytest.mark.parametrize("killed_at", ["save_file", "save", "chmod", "replace"])
def test_a_checkpoint_is_whole_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed_at: str) -> None:
    """Whatever is being written when the process dies, the former checkpoint counts, and the next one is written."""
    import safetensors.torch

    save(tmp_path, 1, "a")
    place = {"save_file": safetensors.torch, "save": torch, "chmod": Path, "replace": Path}[killed_at]

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr("toolkit.run.shutil.rmtree", lambda *_, **__: None)  # a killed process clears nothing up
        patch.setattr(place, killed_at, die)
        save(tmp_path, 2, "a")
    found = checkpoints.latest(tmp_path, "a")
    assert found is not None and found.step == 1
    save(tmp_path, 2, "a")
    found = checkpoints.latest(tmp_path, "a")
    assert found is not None and found.step == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-2"]


def test_the_fingerprint_covers_what_decides_the_weights(small: tuple[Config, RunFolder]) -> None:
    settings, folder = small
    first = checkpoints.fingerprint(settings, folder)

    def changed(**values: object) -> str:
        train = settings.train.model_copy(update=values)
        return checkpoints.fingerprint(settings.model_copy(update={"train": train}), folder)

    assert changed(save_steps=5, eval_steps=2, packing=False) == first
    assert changed(learning_rate=5e-5) != first
    folder.side("train").write_text(folder.side("train").read_text().replace("water", "tea"))
    assert checkpoints.fingerprint(settings, folder) != first


@given(st.lists(st.floats(0, 10), min_size=1))
def test_smoothing_stays_within_the_values(values: list[float]) -> None:
    smoothed = plot.smooth(values)
    assert smoothed[0] == pytest.approx(values[0])
    assert all(min(values) - 1e-9 <= value <= max(values) + 1e-9 for value in smoothed)


def test_the_plot_is_a_png(tmp_path: Path) -> None:
    entries = [{"step": 0, "held_out_loss": 3.0}, {"step": 1, "loss": 2.0}, {"step": 2, "loss": 1.5}]
    plot.loss_curve(entries, tmp_path / "loss.png")
    assert (tmp_path / "loss.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


@pytest.mark.parametrize("name", ["linear", "cosine", "constant", "constant_with_warmup"])
@pytest.mark.parametrize("warmup", [0, 5])
def test_the_learning_rate_is_transformers_own(name: str, warmup: int) -> None:
    from transformers import get_scheduler

    settings = TrainSettings(steps=20, warmup_steps=warmup, scheduler=name, learning_rate=2e-4)  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=2e-4)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=warmup, num_training_steps=20)
    for step in range(20):
        assert schedule.learning_rate(settings, step) == pytest.approx(scheduler.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        scheduler.step()


def test_without_a_card_peft_trains_and_unsloth_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_cuda", lambda: False)
    chosen = choice.choose("auto")
    assert (chosen.name, chosen.device) == ("peft", "cpu") and "no CUDA card" in chosen.reason
    with pytest.raises(ToolkitError, match="a CUDA card") as caught:
        choice.choose("unsloth")
    assert caught.value.exit_code == MISSING


def test_with_a_card_unsloth_is_taken_where_it_is_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(choice, "has_cuda", lambda: True)
    monkeypatch.setattr(machine, "installed", lambda name: True)
    monkeypatch.setitem(sys.modules, "unsloth", types.ModuleType("unsloth"))
    assert choice.choose("auto").name == "unsloth"
    assert choice.choose("peft").name == "peft"
    fallen = choice.choose("auto", avoid="it broke")
    assert fallen.name == "peft" and "it broke" in fallen.reason
    monkeypatch.setattr(machine, "installed", lambda name: False)
    assert choice.choose("auto").name == "peft"


def test_a_card_that_only_emulates_bf16_computes_in_f16(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Turing and Volta do: torch counts the emulation unless told not to."""
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert choice.peft_backend.backend("cuda", "").precision("auto") == "f16"
    assert choice.peft_backend.backend("cuda", "").precision("bf16") == "bf16"


def test_a_card_does_not_train_in_float32() -> None:
    with pytest.raises(ToolkitError, match="f32, but a card"):
        choice.peft_backend.backend("cuda", "").precision("f32")


def test_an_unsloth_that_breaks_says_how(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unsloth", None)  # importing it raises ImportError
    with pytest.raises(backend.UnslothFailed, match="ModuleNotFoundError") as caught:
        unsloth_backend.backend()
    assert 'train.backend = "peft"' in caught.value.hint and caught.value.exit_code == MISSING


def test_a_log_line_is_json(tmp_path: Path) -> None:
    log = LogKeeper(tmp_path / "log.jsonl", 0)
    log.add({"step": 1, "loss": 2.0})
    assert json.loads((tmp_path / "log.jsonl").read_text()) == {"step": 1, "loss": 2.0}
