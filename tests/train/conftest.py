"""A small random-weight base and prepared records to train on."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY
from tests.small import save_model
from toolkit import toml
from toolkit.base import Base
from toolkit.config import Config
from toolkit.run import RunFolder, folder_of

# Two processes that shard a model, as examples/fsdp.yaml says; the module that they run follows.
FSDP = [
    sys.executable, "-m", "accelerate.commands.launch", f"--config_file={REPOSITORY / 'examples' / 'fsdp.yaml'}",
    "--num_processes=2", "--main_process_port=0", "-m",
]  # fmt: skip
ANSWERS = [
    "Wash your hands often, and sleep enough.",
    "See a doctor if it lasts for more than a week.",
    "Drink water and rest; most colds end by themselves.",
]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = save_model(tmp_path_factory.mktemp("train") / "base", hidden_size=64, intermediate_size=128)
    return Base(str(folder), folder)


@pytest.fixture
def one_thread(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have torch compute in one thread, here and in processes started here.

    Two runs are the same to the last bit then; with several, a machine under load parted in the last one now and then.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    torch.set_num_threads(before)


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
        folder.side(side).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def small(tmp_path: Path) -> tuple[Config, RunFolder]:
    """Settings of a run of eight short steps, with its records."""
    settings = toml.build(
        {
            "run": {"name": "small", "folder": str(tmp_path)},
            "train": {
                "steps": 8,
                "batch_size": 2,
                "accumulation": 2,
                "max_length": 256,
                "save_steps": 3,
                "lora_dropout": 0.1,  # so that resuming must bring back the random state too
                "gradient_checkpointing": False,
                "learning_rate": 1e-3,
            },
        }
    )
    folder = folder_of(settings)
    write_records(folder)
    return settings, folder
