"""A small random-weight base and prepared records to train on."""

import json
import sys
from pathlib import Path
from typing import Any

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
# How far apart two runs of the same arithmetic may be, relatively. It would be nothing, but a processor was seen to
# round some exponentials the other way for minutes: the same few numbers, in the same one of eight lanes, by one unit
# in the last place, in one thread too. Eight steps make about 1e-7 of that, and of a wrong learning rate far more.
SAME = 1e-6
ANSWERS = [
    "Wash your hands often, and sleep enough.",
    "See a doctor if it lasts for more than a week.",
    "Drink water and rest; most colds end by themselves.",
]


@pytest.fixture(scope="session")
def base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    folder = save_model(tmp_path_factory.mktemp("train") / "base", hidden_size=64, intermediate_size=128)
    return Base(str(folder), folder)


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
