"""A small random-weight base and prepared records to train on."""

import gc
import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import processes
from tests.support.models import save_model
from tests.support.places import REPOSITORY
from tests.support.waiting import Running, wait_while_running
from tests.support.warm import TRAINS, train_warm
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.model.base import Base
from toolkit.train import checkpoints

# Two processes that shard a model, as examples/fsdp.yaml says; the module that they run follows.
FSDP = [
    sys.executable, "-m", "accelerate.commands.launch", f"--config_file={REPOSITORY / 'examples' / 'fsdp.yaml'}",
    "--num_processes=2", "--main_process_port=0", "-m",
]  # fmt: skip
# How far apart two runs of the same arithmetic may be, relatively. It would be nothing, but a processor was seen to
# round some exponentials the other way for minutes: the same few numbers, in the same one of eight lanes, by one unit
# in the last place, in one thread too. Eight steps make about 1e-7 of that, and of a wrong learning rate far more.
SAME = 1e-6
ANSWERS = [
    "Wash your hands often, and sleep enough.",
    "See a doctor if it lasts for more than a week.",
    "Drink water and rest; most colds end by themselves.",
]


# Train with the settings of the second argument on the base of the first, after running the third.
RUN = """
import sys
from pathlib import Path
from toolkit.model.base import Base
from toolkit.core.config import Config
from toolkit.core.run_folder import folder_of
from toolkit.train import train
config = Config.model_validate_json(sys.argv[2])
exec(sys.argv[3])
train(config, folder_of(config), Base("base", Path(sys.argv[1])))
"""
# A worker of several that train together; the second of them is killed in step 5.
KILL_ONE = """
import os, runpy, signal
from toolkit.train.trainer import ToolkitTrainer
real = ToolkitTrainer.training_step
def step(self, *arguments, **named):
    if self.state.global_step == 4 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    return real(self, *arguments, **named)
ToolkitTrainer.training_step = step
runpy.run_module("toolkit.train.worker", run_name="__main__")
"""


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Train in one thread, here and in other processes: two that wait for a busy core take ten times as long."""
    from tests.support.threads import one_thread

    with one_thread(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("OMP_NUM_THREADS", "1")
        # accelerate and the toolkit look through the libraries' million objects twice in each training, for 0.5 s.
        patch.setattr(gc, "collect", lambda *_: 0)
        yield


@pytest.fixture
def warm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the processes that a test starts to train begin warm."""
    train_warm(monkeypatch)


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = save_model(tmp_path_factory.mktemp("train") / "base", hidden_size=64, intermediate_size=128)
    return Base(str(folder), folder)


@pytest.fixture
def four_bit(base: Base, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Base:
    """The small base as the hub's 4-bit repositories are: stored as integers, computing in bf16."""
    pytest.importorskip("bitsandbytes")
    import torch
    from transformers import AutoModelForCausalLM

    from toolkit.train import peft_backend

    # On a CPU bitsandbytes may pack the weights in a way of its own, which no GPU does.
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: False)
    quantization = peft_backend._four_bit(torch.bfloat16)
    quantization.bnb_4bit_quant_storage = torch.uint8
    options = {"dtype": torch.bfloat16, "device_map": {"": "cpu"}, "quantization_config": quantization}
    AutoModelForCausalLM.from_pretrained(base.folder, **options).save_pretrained(tmp_path / "four")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base.folder / name, tmp_path / "four" / name)
    return Base("four", tmp_path / "four")


def distance(one: dict[str, Any], other: dict[str, Any]) -> float:
    """The norm of what parts two adapters, by the norm of the first."""
    import torch

    assert set(one) == set(other)
    both = [torch.cat([weights[name].flatten() for name in sorted(one)]) for weights in (one, other)]
    return float((both[0] - both[1]).norm() / both[0].norm())


def write_records(folder: RunFolder, count: int = 24) -> None:
    """Write prepared records: `count` to train on, four to watch, four held out."""
    folder.data.mkdir(parents=True, exist_ok=True)
    for side, number in (("train", count), ("val", 4), ("test", 4)):
        rows = [
            {
                "id": f"{side}{row}",
                "row": row,
                "instruction": "Explain:",
                "input": f"What helps against cold number {row}?",
                "output": ANSWERS[row % 3] + f" ({row})",
                "group": "g",
                "truncated": False,
            }
            for row in range(1, number + 1)
        ]
        folder.split_file(side).write_text("".join(json.dumps(row) + "\n" for row in rows))


def entries(folder: RunFolder) -> list[dict[str, Any]]:
    """The finished run's log."""
    return [json.loads(line) for line in folder.train_log.read_text().splitlines()]


def losses(folder: RunFolder) -> list[float]:
    """The loss of every step of the finished run."""
    return [entry["loss"] for entry in entries(folder) if "loss" in entry]


def with_(settings: Config, folder: Path, **values: object) -> tuple[Config, RunFolder]:
    """Return the settings with other training values, in a run folder of their own with the same records."""
    run = settings.run.model_copy(update={"folder": str(folder)})
    moved = changed(settings, **values).model_copy(update={"run": run})
    target = RunFolder(folder / settings.run.name, settings.run.name)
    target.path.mkdir(parents=True)
    (target.path / "data").symlink_to((Path(settings.run.folder) / settings.run.name / "data").resolve())
    return moved, target


def plain(settings: Config, **values: object) -> Config:
    """The settings in float32 without dropout, so that the layout of a step changes nothing but rounding."""
    return changed(settings, precision="f32", lora_dropout=0.0, **values)


def changed(settings: Config, **values: object) -> Config:
    """The settings with other training values."""
    return settings.model_copy(update={"train": settings.train.model_copy(update=values)})


def place_of(settings: Config, folder: RunFolder) -> Path:
    """The folder of a run's checkpoints."""
    return checkpoints.place(folder, checkpoints.fingerprint(settings, folder))


def log_of(folder: RunFolder) -> list[dict[str, Any]]:
    """The finished run's log without its speed: what an equal run repeats."""
    return [{key: value for key, value in entry.items() if key != "tokens_per_second"} for entry in entries(folder)]


def assert_equal(found: list[dict[str, Any]], expected: list[dict[str, Any]]) -> None:
    """Compare two logs; every number within SAME."""
    assert [sorted(entry) for entry in found] == [sorted(entry) for entry in expected]
    for one, other in zip(found, expected, strict=True):
        parts = [[number for part in entry.get("eval_parts", []) for number in part] for entry in (one, other)]
        assert parts[0] == pytest.approx(parts[1], rel=SAME)
        assert {**one, "eval_parts": 0} == pytest.approx({**other, "eval_parts": 0}, rel=SAME)


def start(settings: Config, base: Base, before: str = "") -> processes.Process:
    """Train in a process of its own, which runs `before` first."""
    called = ["-c", RUN, str(base.folder), settings.model_dump_json(by_alias=True), before]
    return processes.start(*called, stderr=subprocess.PIPE, imports=TRAINS)


def steps_so_far(folder: RunFolder) -> list[int]:
    """The steps in the log of the run that is going on; the last line may be half written."""
    log = folder.checkpoints / "train_log.jsonl"
    lines = log.read_text().split("\n")[:-1] if log.is_file() else []
    return [entry["step"] for entry in map(json.loads, lines) if "loss" in entry]


def wait_for_step(folder: RunFolder, step: int, process: Running) -> None:
    """Wait until a training process has logged a step; fails where it ends before."""
    wait_while_running(process, lambda: step in steps_so_far(folder))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, RunFolder]:
    """Settings of a run of eight short steps, with its records."""
    return small_run(tmp_path)


def small_run(path: Path) -> tuple[Config, RunFolder]:
    """Write the records of a run of eight short steps below `path`; return its settings and its folder."""
    settings = config_file.build(
        {
            "run": {"name": "small", "folder": str(path)},
            "train": {
                "max_steps": 8,
                "batch_size": 2,
                "gradient_accumulation_steps": 2,
                "max_length": 256,
                "save_steps": 3,
                "lora_dropout": 0.1,  # so that resuming must bring back the random state too
                "gradient_checkpointing": False,
                "learning_rate": 1e-3,
            },
            # Two answers of 2 tokens; six of 64 would take more than the eight steps.
            "validate": {"questions": ["Does rest help?"], "answer_tokens": 2},
        }
    )
    folder = folder_of(settings)
    write_records(folder)
    return settings, folder
