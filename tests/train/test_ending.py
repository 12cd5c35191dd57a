"""How a run ends: by signals in every phase, with a checkpoint before the last held-out loss, and going on after it."""

import json
import os
import pty
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.train.conftest import (
    assert_equal,
    changed,
    entries,
    log_of,
    losses,
    place_of,
    plain,
    small_run,
    start,
    wait_for_step,
    with_,
)
from toolkit.core import streams
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.records import spread
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.train import checkpoints, examples, train
from toolkit.train.backend import UnslothFailed
from toolkit.train.callbacks import Report
from toolkit.train.trainer import ToolkitTrainer

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def once(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of eight steps in one go, with a held-out loss every four."""
    settings, folder = small_run(tmp_path_factory.mktemp("once"))
    train(changed(settings, eval_steps=4), folder, base)
    return log_of(folder)


def in_held_out_loss(monkeypatch: pytest.MonkeyPatch, step: int, do: Any) -> list[int]:
    """Call `do` in the second held-out batch of a step; the list grows by the step of each batch."""
    real, seen = ToolkitTrainer.compute_loss, []

    def compute_loss(self: Any, *arguments: Any, **named: Any) -> Any:
        if not torch.is_grad_enabled():
            seen.append(self.state.global_step)
            if seen.count(step) == 2 and seen[-1] == step:
                do()
        return real(self, *arguments, **named)

    monkeypatch.setattr(ToolkitTrainer, "compute_loss", compute_loss)
    return seen


def steps_saved(settings: Config, folder: RunFolder) -> list[int]:
    """The steps of the whole checkpoints of a run."""
    run = checkpoints.fingerprint(settings, folder)
    found = place_of(settings, folder).glob("checkpoint-*")
    return sorted(checkpoints.step_of(path) for path in found if checkpoints.is_whole(path, run))


@pytest.mark.parametrize(
    ("step", "number"), [(0, signal.SIGTERM), (4, signal.SIGINT), (4, signal.SIGHUP), (8, signal.SIGTERM)]
)
def test_a_signal_in_a_held_out_loss_ends_it_with_the_batch_in_hand(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], step: int, number: signal.Signals,
) -> None:  # fmt: skip
    """And the same command goes on with that very loss; nothing is left out or done twice."""
    settings, folder = changed(small[0], eval_steps=4, save_steps=100), small[1]
    hung: list[str] = []
    monkeypatch.setattr(streams, "hang_up", lambda: hung.append("up"))
    with monkeypatch.context() as patch:
        seen = in_held_out_loss(patch, step, lambda: os.kill(os.getpid(), number))
        with pytest.raises(KeyboardInterrupt):
            train(settings, folder, base)
    assert seen.count(step) == 2 and bool(hung) == (number == signal.SIGHUP)
    assert (steps_saved(settings, folder)[-1:] or [0]) == [step]
    said = " ".join(capsys.readouterr().err.split())
    assert (f"stopped: step {step} of 8 is saved" if step else "stopped before the first checkpoint") in said
    assert train(settings, folder, base).figures["resumed_at_step"] == step
    assert_equal(log_of(folder), once)


@pytest.mark.parametrize("micro_batch", [0, 1])
def test_a_signal_in_a_long_step_leaves_it_and_it_is_done_again(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch,
    micro_batch: int,
) -> None:  # fmt: skip
    """With the random numbers that dropout would have had: a step of two micro-batches is asked to stop in each."""
    settings, folder = changed(small[0], eval_steps=4, save_steps=100), small[1]
    real = ToolkitTrainer.compute_loss
    seen: list[int] = []

    def compute_loss(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = real(self, *arguments, **named)
        if torch.is_grad_enabled() and self.state.global_step == 5:
            if len(seen) == micro_batch:
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(self.state.global_step)
        return loss

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ToolkitTrainer, "compute_loss", compute_loss)
        train(settings, folder, base)
    assert len(seen) == micro_batch + 1
    done = 5 + micro_batch  # after its last micro-batch a step is whole
    assert steps_saved(settings, folder)[-1] == done
    assert train(settings, folder, base).figures["resumed_at_step"] == done
    assert_equal(log_of(folder), once)


def test_a_signal_leaves_no_step_out_of_a_log_that_is_read_late(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a GPU under Unsloth: the step before is noted only, and the step in hand is done and saved."""
    settings, folder = changed(small[0], eval_steps=4, save_steps=100), small[1]
    monkeypatch.setattr("toolkit.train.trainer.reads_late", lambda _: True)
    monkeypatch.setattr(Report, "on_step_begin", lambda *_, **__: None)  # else a CPU leaves the step
    real = ToolkitTrainer.compute_loss

    def compute_loss(self: Any, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and self.state.global_step == 5 and not self.job.stopped:
            assert self.unread.step == 5
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *arguments, **named)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ToolkitTrainer, "compute_loss", compute_loss)
        train(settings, folder, base)
    state = json.loads((place_of(settings, folder) / "checkpoint-6" / checkpoints.STATE).read_text())
    assert [entry["step"] for entry in state["log_history"] if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert train(settings, folder, base).figures["resumed_at_step"] == 6
    assert_equal(log_of(folder), once)


@pytest.mark.parametrize("eval_steps", [0, 4, 3])
def test_a_checkpoint_stands_before_the_last_held_out_loss(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, eval_steps: int
) -> None:
    """Whatever kills the process in it: the next call takes that loss and no step, and keeps the same adapter."""
    runs = [with_(small[0], Path(small[0].run.folder) / name, eval_steps=eval_steps) for name in ("whole", "killed")]
    whole = train(*runs[0], base)
    settings, folder = runs[1]

    def killed() -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        in_held_out_loss(patch, 8, killed)
        train(settings, folder, base)
    assert 8 in steps_saved(settings, folder) and not folder.adapter.exists()
    again = train(settings, folder, base)
    assert again.figures["resumed_at_step"] == 8
    for key in ("kept_step", "held_out_loss_before", "held_out_loss_after", "learned"):
        assert again.figures[key] == pytest.approx(whole.figures[key], rel=1e-6) if key != "learned" else True
    assert_equal(log_of(folder), log_of(runs[0][1]))
    assert (folder.adapter / "adapter_model.safetensors").read_bytes() == (
        runs[0][1].adapter / "adapter_model.safetensors"
    ).read_bytes()


def test_a_hang_up_is_no_reason_where_it_is_ignored(small: tuple[Config, RunFolder], base: Base) -> None:
    """As nohup starts a process."""
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with pytest.MonkeyPatch.context() as patch:
            in_held_out_loss(patch, 0, lambda: os.kill(os.getpid(), signal.SIGHUP))
            assert train(*small, base).figures["steps"] == 8
    finally:
        signal.signal(signal.SIGHUP, former)


# Have the terminal of that name as one's own, and nothing else to print on.
TAKE = """
import fcntl, os, termios
os.setsid()
os.environ["TERM"] = "xterm"
terminal = os.open({name!r}, os.O_RDWR)
fcntl.ioctl(terminal, termios.TIOCSCTTY, 0)
for number in range(3):
    os.dup2(terminal, number)
os.close(terminal)
"""


def test_a_terminal_that_goes_away_leaves_a_checkpoint(small: tuple[Config, RunFolder], base: Base) -> None:
    """What is printed has nowhere to go then: writing to it fails."""
    settings, folder = with_(small[0], Path(small[0].run.folder) / "slow", max_steps=400, save_steps=1000)
    ours, theirs = pty.openpty()
    os.set_blocking(ours, False)
    process = start(settings, base, TAKE.format(name=os.ttyname(theirs)))
    wait_for_step(folder, 2, process)
    os.close(theirs)
    os.close(ours)
    process.wait(timeout=300)
    [step] = steps_saved(settings, folder)
    assert step >= 2 and not folder.adapter.exists()


def test_the_held_out_loss_is_taken_on_so_many_records(
    small: tuple[Config, RunFolder], base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = changed(small[0], max_eval_samples=3, max_steps=2), small[1]
    figures = train(settings, folder, base).figures
    assert (figures["held_out_used"], figures["held_out_records"]) == (3, 4)
    assert "on 3 of 4 held-out records (train.max_eval_samples)" in " ".join(capsys.readouterr().err.split())
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    form = prompt_format(settings.prompt)
    rows = examples.tokenize(folder.split_file("val"), load_tokenizer(base.folder, form), form, settings.train)
    counts = [row.learned for row in spread(rows, 3)]
    for entry in entries(folder):
        if "eval_loss" in entry:
            assert [count for _, count in entry["eval_parts"]] == counts
            assert entry["eval_loss"] == sum(loss for loss, _ in entry["eval_parts"]) / sum(counts)


@pytest.mark.parametrize(("rate", "verdict"), [(1e-3, "better"), (1e-9, "unmoved"), (3e-2, "worse")])
def test_a_run_says_whether_the_model_learned(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, rate: float, verdict: str
) -> None:
    real = ToolkitTrainer.compute_loss

    def spoiled(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = real(self, *arguments, **named)
        return loss if torch.is_grad_enabled() or not self.state.global_step else loss * 2

    if verdict == "worse":
        monkeypatch.setattr(ToolkitTrainer, "compute_loss", spoiled)
    done = train(plain(small[0], learning_rate=rate), small[1], base)
    assert done.figures["learned"]["verdict"] == verdict
    assert bool(done.warning) == (verdict != "better")
    assert done.figures["learned"]["before"] == done.figures["held_out_loss_before"]
    if done.warning:
        assert f"it is {rate:g}" in done.warning and "4 of 4 held-out records" in done.warning


@pytest.mark.parametrize("every", [3, 100])
def test_steps_that_are_logged_together_have_their_mean(
    small: tuple[Config, RunFolder], base: Base, every: int
) -> None:
    """And each one that is saved or measured is logged."""
    runs = [with_(small[0], Path(small[0].run.folder) / str(n), logging_steps=n, save_steps=5) for n in (1, every)]
    for settings, folder in runs:
        train(settings, folder, base)
    single = losses(runs[0][1])
    log = [entry for entry in entries(runs[1][1]) if "loss" in entry]
    steps = [entry["step"] for entry in log]
    assert steps == {3: [3, 5, 6, 8], 100: [5, 8]}[every]
    starts = [0, *steps[:-1]]
    means = [sum(single[start:step]) / (step - start) for start, step in zip(starts, steps, strict=True)]
    assert [entry["loss"] for entry in log] == pytest.approx(means, rel=1e-5)
    tokens = {entry["step"]: entry["tokens"] for entry in entries(runs[0][1]) if "loss" in entry}
    assert [entry["tokens"] for entry in log] == [tokens[step] for step in steps]


@pytest.mark.parametrize(("every", "evaluated", "saved"), [(1, 4, 3), (3, 0, 100)])
def test_a_log_that_is_read_one_step_late_is_the_same(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, every: int, evaluated: int,
    saved: int,
) -> None:  # fmt: skip
    """As on a GPU under Unsloth; a checkpoint and a held-out loss find every step before them logged."""
    settings = changed(small[0], logging_steps=every, eval_steps=evaluated, save_steps=saved)
    train(settings, small[1], base)
    late = with_(settings, Path(settings.run.folder) / "late")
    real, seen = Report.on_log, []

    def on_log(self: Any, args: Any, state: Any, control: Any, **named: Any) -> None:
        seen.append((state.log_history[-1]["step"], set(self.trainer.micro_losses)))
        real(self, args, state, control, **named)

    monkeypatch.setattr(Report, "on_log", on_log)
    monkeypatch.setattr("toolkit.train.trainer.reads_late", lambda _: True)
    train(*late, base)
    assert_equal(log_of(late[1]), log_of(small[1]))
    assert any(step + 1 in known for step, known in seen)  # the next one was computed before


@pytest.mark.parametrize(("where", "every"), [("loss", 4), ("gradient", 4), ("loss", 1)])
def test_the_first_step_that_is_not_finite_is_named_also_where_the_log_skips_it(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, where: str, every: int
) -> None:
    """With every step logged, it is read while the next one is computed."""
    settings, folder = plain(small[0], logging_steps=every, save_steps=100), small[1]
    monkeypatch.setattr("toolkit.train.trainer.reads_late", lambda _: every == 1)
    real = ToolkitTrainer.compute_loss

    def poisoned(self: Any, *arguments: Any, **named: Any) -> Any:
        loss = real(self, *arguments, **named)
        if torch.is_grad_enabled() and self.state.global_step == 1:
            if where == "loss":
                return loss * float("nan")
            loss.register_hook(lambda gradient: gradient * float("inf"))
        return loss

    monkeypatch.setattr(ToolkitTrainer, "compute_loss", poisoned)
    with pytest.raises(Exception, match=r"step 2: the loss is") as caught:
        train(settings, folder, base)
    assert caught.value.details["step"] == 2 and caught.value.details["rows"]  # type: ignore[attr-defined]
    assert not folder.adapter.exists() and not steps_saved(settings, folder)


@pytest.mark.parametrize(
    ("raised", "step", "kind"),
    [
        (RuntimeError("no triton kernel\nfor it"), 0, UnslothFailed),
        (ImportError("no triton"), 0, UnslothFailed),
        (TypeError("no such argument"), -1, UnslothFailed),
        (RuntimeError("no triton kernel"), 1, RuntimeError),
        (MemoryError(), 0, MemoryError),
        (OSError(28, "No space left on device"), 0, OSError),
        (ToolkitError("ours", hint="h"), 0, ToolkitError),
    ],
)
def test_what_unsloth_raises_in_the_first_step_is_its_own(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, raised: Exception, step: int,
    kind: type[Exception],
) -> None:  # fmt: skip
    """It compiles the model there, so another process can go on without it; not so a full disk, or a later step.

    Step -1 is the making of the trainer, which Unsloth changes.
    """
    from toolkit.train import peft_backend

    real = ToolkitTrainer.compute_loss
    posing = replace(peft_backend.make_peft_backend("cpu", ""), name="unsloth")
    monkeypatch.setattr("toolkit.train.choose_backend", lambda *_: posing)

    def fails(self: Any, *arguments: Any, **named: Any) -> Any:
        if torch.is_grad_enabled() and self.state.global_step == step:
            raise raised
        return real(self, *arguments, **named)

    def fails_at_once(*_: Any, **__: Any) -> Any:
        raise raised

    monkeypatch.setattr(ToolkitTrainer, "compute_loss", fails)
    if step < 0:
        monkeypatch.setattr("toolkit.train.trainer.arguments", fails_at_once)
    with pytest.raises(kind) as caught:
        train(*small, base)
    assert type(caught.value) is kind
    if isinstance(caught.value, UnslothFailed):
        assert caught.value.reason == f"{type(raised).__name__}: {str(raised).splitlines()[0]}"


@pytest.mark.parametrize("name", ["constant_with_warmup", "inverse_sqrt"])
def test_a_finished_run_goes_on_with_more_steps(small: tuple[Config, RunFolder], base: Base, name: str) -> None:
    """As one go of so many does; with fewer it starts from a checkpoint before its new end, or anew."""
    settings, folder = changed(small[0], lr_scheduler_type=name, warmup_steps=2), small[1]
    train(settings, folder, base)
    longer = changed(settings, max_steps=11)
    assert train(longer, folder, base).figures["resumed_at_step"] == 8
    alone = with_(longer, Path(settings.run.folder) / "alone")
    train(*alone, base)
    found = [entry for entry in log_of(folder) if (entry["step"], "eval_loss" in entry) != (8, True)]
    assert_equal(found, log_of(alone[1]))
    assert train(changed(settings, max_steps=7), folder, base).figures["resumed_at_step"] in (0, 3, 6)


def test_why_a_run_cannot_go_on_is_said(
    small: tuple[Config, RunFolder], base: Base, capsys: pytest.CaptureFixture[str]
) -> None:
    settings, folder = small
    train(changed(settings, max_steps=2), folder, base)
    capsys.readouterr()
    assert train(changed(settings, max_steps=4), folder, base).figures["resumed_at_step"] == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "training starts over, not from step 2" in said and "constant_with_warmup or inverse_sqrt" in said
    train(changed(settings, max_steps=4, learning_rate=5e-4), folder, base)
    assert "starts over" not in capsys.readouterr().err
