"""Training for real on a small random-weight model: the result, the log, resuming, stopping, and NaN."""

import json
import re
import shutil
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from tests.train.conftest import (
    SAME,
    assert_equal,
    changed,
    entries,
    log_of,
    losses,
    place_of,
    plain,
    start,
    wait_for_step,
    with_,
    write_records,
)
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.records import Records
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.model.base import Base
from toolkit.model.greedy_answer import greedy_answer
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.train import batches, checkpoints, examples, outcome, train
from toolkit.train.example_table import IGNORED, Example

pytestmark = pytest.mark.slow

# Kill the process in the save of step 6: between adapter and optimizer, and between the last file and the marker.
DIE = "import os, signal; die = lambda: os.kill(os.getpid(), signal.SIGKILL)\n"
IN_A_SAVE = {
    "optimizer": """
import torch
real = torch.save
def save(what, where, *rest, **named):
    if str(where).endswith("checkpoint-6/optimizer.pt"):
        die()
    real(what, where, *rest, **named)
torch.save = save
""",
    "marker": """
from toolkit.train import checkpoints
real = checkpoints.mark
def mark(checkpoint, *run):
    if checkpoint.name == "checkpoint-6":
        die()
    real(checkpoint, *run)
checkpoints.mark = mark
""",
}


@pytest.fixture(scope="module")
def once(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The log of the eight steps in one go."""
    from tests.train.conftest import small_run

    settings, folder = small_run(tmp_path_factory.mktemp("once"))
    assert train(settings, folder, base).figures["resumed_at_step"] == 0
    return log_of(folder)


def test_training_writes_adapter_log_and_plot_and_learns(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    result = train(settings, folder, base)
    assert all(path.is_file() for path in result.outputs)
    names = {path.name for path in result.outputs}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "loss.png"} <= names
    assert result.figures["held_out_loss_after"] < result.figures["held_out_loss_before"]
    assert (result.figures["steps"], result.figures["kept_step"], result.figures["resumed_at_step"]) == (8, 8, 0)
    kept = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == base.folder.name
    log = entries(folder)
    assert [entry["step"] for entry in log] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert all(entry["grad_norm"] > 0 for entry in log if "loss" in entry)
    assert result.figures["tokens_seen"] == log[-2]["tokens"]


def test_the_questions_are_answered_by_the_base_and_by_the_trained_model(
    small: tuple[Config, RunFolder], base: Base
) -> None:
    """Validation shows these answers: transformers and PEFT give the same from the saved folders."""
    settings, folder = small
    asked = settings.validation.model_copy(update={"answer_tokens": 12, "questions": ["Does rest help?", "And water?"]})
    found = train(settings.model_copy(update={"validation": asked}), folder, base).figures["answers"]
    assert [(one["question"], one["tokens"]) for one in found] == [(question, 12) for question in asked.questions]
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    form, tokenizer = prompt_format(settings.prompt), load_tokenizer(base.folder)
    prompts = [render(form, question, asked.instruction) for question in asked.questions]
    before = [greedy_answer(model, tokenizer, prompt, 12, form.stops) for prompt in prompts]
    trained = PeftModel.from_pretrained(model, folder.adapter)
    after = [greedy_answer(trained, tokenizer, prompt, 12, form.stops) for prompt in prompts]
    assert [one["before"] for one in found] == before and [one["after"] for one in found] == after
    assert before != after


def summed_losses(model: Any, rows: Iterable[Example]) -> list[tuple[float, int]]:
    """The summed loss of each record and its learned tokens, by torch alone."""
    found = []
    with torch.no_grad():
        for row in rows:
            log_probs = model(torch.tensor([row.input_ids])).logits[0].double().log_softmax(-1)
            learned = [(place, label) for place, label in enumerate(row.labels[1:]) if label != IGNORED]
            found.append((-sum(float(log_probs[place, label]) for place, label in learned), len(learned)))
    return found


def test_held_out_loss_is_the_mean_over_tokens(small: tuple[Config, RunFolder], base: Base) -> None:
    """Before and after training, against a plain computation with torch; a mean of batches would be another number."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    settings, folder = small
    settings = plain(settings, learning_rate=1e-2, max_steps=3, warmup_steps=0, max_length=320)
    held_out = Records(folder.split_file("val"))
    records = [{**record, "output": "Rest. " * 12 if place < 2 else "No."} for place, record in enumerate(held_out)]
    records.append(records[0])  # five records in batches of two
    folder.split_file("val").write_text("".join(json.dumps(record) + "\n" for record in records))
    train(settings, folder, base)
    form = prompt_format(settings.prompt)
    rows = examples.tokenize(folder.split_file("val"), load_tokenizer(base.folder, form), form, settings.train)
    found = {entry["step"]: entry["eval_loss"] for entry in entries(folder) if "eval_loss" in entry}
    assert sorted(found) == [0, 3]
    for step in (0, 3):
        model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
        sums = summed_losses(PeftModel.from_pretrained(model, folder.adapter) if step else model, rows)
        assert found[step] == pytest.approx(sum(loss for loss, _ in sums) / sum(count for _, count in sums), rel=1e-6)
        pairs = [sums[:2], sums[2:4], sums[4:]]
        means = [sum(loss for loss, _ in some) / sum(count for _, count in some) for some in pairs]
        assert abs(found[step] - sum(means) / 3) > 1e-3


def test_resuming_gives_the_log_of_one_go(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]]
) -> None:
    settings, folder = small
    process = start(settings, base)
    wait_for_step(folder, 5, process)
    process.kill()  # at step 5 or later: the checkpoint of step 3 is whole
    process.wait()
    assert not folder.adapter.exists()
    assert train(settings, folder, base).figures["resumed_at_step"] in (3, 6)
    assert_equal(log_of(folder), once)
    # The log that grows was cut back to the checkpoint, whatever the killed process wrote last.
    assert (folder.checkpoints / "train_log.jsonl").read_text() == folder.train_log.read_text()


@pytest.mark.parametrize("place", sorted(IN_A_SAVE))
def test_killed_in_a_save_it_goes_on_from_the_one_before(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]], place: str
) -> None:
    settings, folder = small
    process = start(settings, base, DIE + IN_A_SAVE[place])
    _, err = process.communicate(timeout=300)
    assert process.returncode == -signal.SIGKILL, err
    half = place_of(settings, folder) / "checkpoint-6"
    assert (half / "adapter_model.safetensors").is_file() and not (half / checkpoints.MARKER).exists()
    assert (half / "trainer_state.json").is_file() == (place == "marker")
    assert train(settings, folder, base).figures["resumed_at_step"] == 3
    assert_equal(log_of(folder), once)
    assert checkpoints.is_whole(half, checkpoints.fingerprint(settings, folder))


def test_a_run_that_was_killed_after_its_last_step_only_writes_its_results(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(outcome, "finish", killed)
        train(*small, base)
    result = train(*small, base)
    assert result.figures["resumed_at_step"] == result.figures["steps"] == result.figures["kept_step"] == 8
    assert_equal(log_of(small[1]), once)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]]
) -> None:
    settings, folder = with_(small[0], Path(small[0].run.folder) / "slow", save_steps=1000)
    process = start(settings, base)
    wait_for_step(folder, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert "stopping as soon as a checkpoint can be saved" in err and "KeyboardInterrupt" in err
    step = int(re.findall(r"stopped: step (\d) of 8 is saved", err)[0])
    assert not folder.adapter.exists()
    assert train(settings, folder, base).figures["resumed_at_step"] == step >= 2
    assert_equal(log_of(folder), once)


def test_a_checkpoint_of_other_settings_is_not_used_and_kept_until_a_run_finishes(
    small: tuple[Config, RunFolder], base: Base
) -> None:
    settings, folder = small
    train(settings, folder, base)
    other = changed(settings, seed=1)
    (folder.checkpoints / "train_log.jsonl").unlink()
    process = start(other, base)
    wait_for_step(folder, 4, process)
    process.kill()
    process.wait()
    mine, theirs = place_of(settings, folder), place_of(other, folder)
    assert mine != theirs and (mine / "checkpoint-8" / checkpoints.MARKER).is_file()
    assert train(other, folder, base).figures["resumed_at_step"] in (3, 6)
    assert not mine.exists() and (theirs / "checkpoint-8" / checkpoints.MARKER).is_file()


def test_an_interrupted_run_goes_on_with_a_toolkit_that_has_more_settings(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]]
) -> None:
    """The earlier one named its checkpoints by fewer settings, some by former names."""
    settings, folder = small
    train(settings, folder, base)
    shutil.rmtree(place_of(settings, folder) / "checkpoint-8")
    earlier = place_of(settings, folder).rename(folder.checkpoints / ("e" * 12))
    for path in earlier.glob(f"checkpoint-*/{checkpoints.MARKER}"):
        mark = json.loads(path.read_text())
        then = {
            key: value for key, value in mark["settings"].items() if key not in ("train.base_compute", "train.turns")
        }
        then["train.scheduler"] = then.pop("train.lr_scheduler_type")
        path.write_text(json.dumps({**mark, "fingerprint": "e" * 64, "settings": then}))
    assert train(settings, folder, base).figures["resumed_at_step"] == 6
    assert_equal(log_of(folder), once)
    assert [path.name for path in folder.checkpoints.glob("*/")] == ["e" * 12]


def test_restarting_takes_no_checkpoint(
    small: tuple[Config, RunFolder], base: Base, once: list[dict[str, Any]]
) -> None:
    settings, folder = small
    train(settings, folder, base)
    assert train(settings, folder, base, restart=True).figures["resumed_at_step"] == 0
    assert_equal(log_of(folder), once)


def test_a_loss_that_is_not_finite_stops_the_run(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    with pytest.raises(ToolkitError, match=r"step .*: the loss is"):
        train(changed(settings, learning_rate=1e30), folder, base)
    assert not folder.adapter.exists()


@pytest.mark.parametrize("late", [False, True])
def test_the_log_is_the_trainers_own_in_its_checkpoint_and_in_tensorboard(
    small: tuple[Config, RunFolder], base: Base, monkeypatch: pytest.MonkeyPatch, late: bool
) -> None:
    """Also where a step is logged while the next one is computed, as on a GPU under Unsloth."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings, folder = small
    monkeypatch.setattr("toolkit.train.trainer.reads_late", lambda _: late)
    settings = changed(settings, report_to=["tensorboard"], eval_steps=4)
    train(settings, folder, base)
    log = entries(folder)
    assert len(log) == 8 + 3
    state = json.loads((place_of(settings, folder) / "checkpoint-8" / "trainer_state.json").read_text())
    assert log == state["log_history"]
    [events] = folder.path.rglob("events.out.tfevents.*")
    reader = EventAccumulator(str(events))
    reader.Reload()
    for tag, key in (
        ("train/loss", "loss"),
        ("train/grad_norm", "grad_norm"),
        ("train/learning_rate", "learning_rate"),
        ("eval/loss", "eval_loss"),
    ):
        reported = {scalar.step: scalar.value for scalar in reader.Scalars(tag)}
        assert reported == pytest.approx({entry["step"]: entry[key] for entry in log if key in entry}, rel=SAME)


def test_no_step_is_short_and_epochs_are_counted_over_the_records(small: tuple[Config, RunFolder], base: Base) -> None:
    """24 records, 10 a step: an epoch ends inside the third step."""
    settings, folder = small
    settings = plain(settings, batch_size=5, max_steps=6)
    train(settings, folder, base)
    log = [entry for entry in entries(folder) if "loss" in entry]
    assert [entry["epoch"] for entry in log] == pytest.approx([step * 10 / 24 for step in range(1, 7)])
    form = prompt_format(settings.prompt)
    rows = examples.tokenize(folder.split_file("train"), load_tokenizer(base.folder, form), form, settings.train)
    order = batches.step_records(24, 10, 6, settings.train.seed)
    assert sorted(order.reshape(-1)[:24]) == list(range(24))
    counts = [sum(len(rows[place].input_ids) for place in step) for step in order]
    assert [entry["tokens"] for entry in log] == [sum(counts[:step]) for step in range(1, 7)]


@pytest.mark.parametrize(("epochs", "steps"), [(1.0, 6), (1.6, 10), (0.01, 1)])
def test_epochs_decide_the_steps(
    epochs: float, steps: int, small: tuple[Config, RunFolder], base: Base, capfd: pytest.CaptureFixture[str]
) -> None:
    """24 records, 4 a step: the trainer, its schedule and the progress line go by the number that comes out."""
    settings, folder = plain(small[0], max_steps=None, num_train_epochs=epochs, warmup_steps=0), small[1]
    assert train(settings, folder, base).figures["steps"] == steps
    log = [entry for entry in entries(folder) if "loss" in entry]
    assert [entry["learning_rate"] for entry in log] == pytest.approx([1e-3 * (1 - n / steps) for n in range(steps)])
    said = " ".join(capfd.readouterr().err.split())
    share = f"{4 * steps} of 24 records" if 4 * steps < 24 else "24 records"
    assert f"{steps} step{'s' * (steps > 1)} of 4 records: {share}, {4 * steps / 24:.2f} epochs" in said


@pytest.fixture
def tiny(small: tuple[Config, RunFolder]) -> tuple[Config, RunFolder]:
    """Settings of a run of six steps of a record, with no held-out ones."""
    settings, folder = small
    write_records(folder, 6)
    folder.split_file("val").write_text("")
    return plain(
        settings, max_steps=6, batch_size=1, gradient_accumulation_steps=1, warmup_steps=2, save_steps=100
    ), folder


@pytest.mark.parametrize("name", get_args(TrainSettings.model_fields["lr_scheduler_type"].annotation))
def test_every_course_of_the_learning_rate_is_transformers_own(
    tiny: tuple[Config, RunFolder], base: Base, name: str
) -> None:
    from transformers import get_scheduler

    settings, folder = tiny
    train(changed(settings, lr_scheduler_type=name), folder, base)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = get_scheduler(name, optimizer, num_warmup_steps=2, num_training_steps=6)
    expected = []
    for _ in range(6):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert [entry["learning_rate"] for entry in entries(folder)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", get_args(TrainSettings.model_fields["optim"].annotation))
def test_every_optimizer_trains(
    tiny: tuple[Config, RunFolder], base: Base, name: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """bitsandbytes' have no kernels on a CPU: AdamW takes their place, and that is said."""
    settings, folder = tiny
    taken = []
    real = outcome.finish

    def noted(job: Any, trainer: Any) -> Any:
        taken.append(trainer.optimizer.optimizer)
        return real(job, trainer)

    monkeypatch.setattr(outcome, "finish", noted)
    rate = 1.0 if name == "sgd" else 1e-2
    train(changed(settings, optim=name, learning_rate=rate, lr_scheduler_type="constant"), folder, base)
    found = losses(folder)
    assert len(found) == 6 and found[-1] < found[0]
    falls_back = name.endswith("bit")
    kind = {"adafactor": "Adafactor", "sgd": "SGD"}.get(name, "AdamW")
    assert type(taken[0]).__name__ == kind
    assert bool(taken[0].defaults.get("fused")) == (name == "adamw_torch_fused")
    said = " ".join(capsys.readouterr().err.split())
    assert (f"optimizer: adamw_torch, because {name} needs CUDA and bitsandbytes" in said) == falls_back
