"""Training for real on a small random-weight model: the result, resuming, stopping, and NaN."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.train.conftest import SAME
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.memory import Plan, Way
from toolkit.run import RunFolder
from toolkit.train import train

pytestmark = pytest.mark.slow

RUN = """
import json, sys
from pathlib import Path
from toolkit.base import Base
from toolkit.config import Config
from toolkit.run import folder_of
from toolkit.train import train
config = Config.model_validate_json(sys.argv[2])
train(config, folder_of(config), Base("base", Path(sys.argv[1])))
"""


def losses(folder: RunFolder) -> list[float]:
    entries = [json.loads(line) for line in folder.train_log.read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def start(settings: Config, base: Base) -> subprocess.Popen[str]:
    text = settings.model_dump_json(by_alias=True)
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    return subprocess.Popen(
        [sys.executable, "-c", RUN, str(base.folder), text], stderr=subprocess.PIPE, text=True, env=environment
    )


def wait_for_step(folder: RunFolder, step: int, process: subprocess.Popen[str]) -> None:
    log = folder.checkpoints / "train_log.jsonl"
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if log.is_file() and f'"step": {step}, "loss"' in log.read_text():
            return
        time.sleep(0.02)
    raise AssertionError(f"step {step} never came: {process.stderr.read() if process.stderr else ''}")


def with_(settings: Config, folder: Path, **values: object) -> tuple[Config, RunFolder]:
    """Return the settings with other training values, in a run folder of their own with the same records."""
    moved = settings.model_copy(
        update={
            "run": settings.run.model_copy(update={"folder": str(folder)}),
            "train": settings.train.model_copy(update=values),
        }
    )
    target = RunFolder(folder / settings.run.name, settings.run.name)
    target.path.mkdir(parents=True)
    (target.path / "data").symlink_to((Path(settings.run.folder) / settings.run.name / "data").resolve())
    return moved, target


@pytest.fixture(scope="module")
def once(base: Base, tmp_path_factory: pytest.TempPathFactory) -> list[float]:
    """The losses of the eight steps in one go."""
    from tests.train.conftest import small

    settings, folder = small.__wrapped__(tmp_path_factory.mktemp("once"))
    outcome = train(settings, folder, base)
    assert outcome.figures["steps"] == 8
    return losses(folder)


def test_training_writes_adapter_log_and_plot_and_learns(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    outcome = train(settings, folder, base)
    assert all(path.is_file() for path in outcome.outputs)
    names = {path.name for path in outcome.outputs}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "loss.png"} <= names
    assert outcome.figures["held_out_loss_after"] < outcome.figures["held_out_loss_before"]
    assert outcome.figures["tokens_seen"] > 0
    kept = json.loads((folder.adapter / "adapter_config.json").read_text())
    assert kept["base_model_name_or_path"] == base.folder.name
    entries = [json.loads(line) for line in folder.train_log.read_text().splitlines()]
    assert [entry["step"] for entry in entries] == [0, 1, 2, 3, 4, 5, 6, 7, 8, 8]
    assert all(entry["grad_norm"] > 0 for entry in entries if "loss" in entry)


def test_held_out_loss_is_the_mean_over_tokens(small: tuple[Config, RunFolder], base: Base) -> None:
    """Against a plain computation with torch, where no adapter has learned anything yet."""
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit import tokens
    from toolkit.prompt import prompt_format
    from toolkit.train import examples
    from toolkit.train.choice import choose
    from toolkit.train.evaluate import held_out_loss
    from toolkit.train.interruption import Interruption
    from toolkit.train.job import Job
    from toolkit.train.log import LogKeeper
    from toolkit.train.precision import Precision
    from toolkit.train.sharding import Whole
    from toolkit.train.workers import Workers

    settings, folder = small
    rows = examples.tokenize(
        folder.side("val"), tokens.load(base.folder), prompt_format(settings.prompt), settings.train
    )
    model = AutoModelForCausalLM.from_pretrained(base.folder, dtype=torch.float32)
    backend, plan = choose("peft"), Plan(64, 8, Way(False), "", None)
    trained = backend.load(base, settings, plan, "cpu", torch.float32)
    job = Job(
        config=settings, folder=folder, backend=backend, model=trained, plan=plan, sides={}, workers=Workers(),
        precision=Precision("f32", "cpu"), log=LogKeeper(None, 0), interruption=Interruption(), fingerprint="",
    )  # fmt: skip
    job.whole = Whole(trained, trained, None)
    found = held_out_loss(job, rows, "x")
    total, count = 0.0, 0
    with torch.no_grad():
        for row in rows:
            log_probs = model(torch.tensor([row.input_ids])).logits[0].log_softmax(-1)
            for position, label in enumerate(row.labels[1:]):
                if label != -100:
                    total -= float(log_probs[position, label])
                    count += 1
    assert found == pytest.approx(total / count, rel=1e-5)


def test_resuming_gives_the_losses_of_one_go(
    small: tuple[Config, RunFolder], base: Base, once: list[float], tmp_path: Path
) -> None:
    settings, folder = small
    process = start(settings, base)
    wait_for_step(folder, 5, process)
    process.kill()  # at step 5 or later: the checkpoint of step 3 is whole
    process.wait()
    assert not folder.adapter.exists()
    outcome = train(settings, folder, base)
    assert outcome.figures["resumed_at_step"] in (3, 6)
    assert losses(folder) == pytest.approx(once, rel=SAME)


def test_ctrl_c_saves_and_the_same_command_goes_on(
    small: tuple[Config, RunFolder], base: Base, once: list[float]
) -> None:
    settings, folder = small
    settings, folder = with_(settings, Path(settings.run.folder) / "slow", save_steps=1000)
    process = start(settings, base)
    wait_for_step(folder, 2, process)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert "stopping after this step" in err and "KeyboardInterrupt" in err
    assert not folder.adapter.exists()
    outcome = train(settings, folder, base)
    assert 2 <= outcome.figures["resumed_at_step"] < 8
    assert losses(folder) == pytest.approx(once, rel=SAME)


def test_a_checkpoint_of_other_settings_is_not_used(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    train(settings, folder, base)
    other = settings.model_copy(update={"train": settings.train.model_copy(update={"seed": 1})})
    assert train(other, folder, base).figures["resumed_at_step"] == 0


def test_a_loss_that_is_not_finite_stops_the_run(small: tuple[Config, RunFolder], base: Base) -> None:
    settings, folder = small
    wild = settings.model_copy(update={"train": settings.train.model_copy(update={"learning_rate": 1e30})})
    with pytest.raises(ToolkitError, match=r"step .*: the loss is"):
        train(wild, folder, base)
    assert not folder.adapter.exists()
