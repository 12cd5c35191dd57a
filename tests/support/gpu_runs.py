"""Small runs on the GPU: a random base, settings with records, and processes of their own to train in."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer

from tests.support.models import SPECIALS, save_model
from tests.support.places import REPOSITORY
from tests.train.conftest import write_records
from toolkit.core import config_file
from toolkit.core.config import Config
from toolkit.core.run_folder import RunFolder, folder_of
from toolkit.model.base import Base


@pytest.fixture(scope="session")
def small_base(tmp_path_factory: pytest.TempPathFactory) -> Base:
    """A random Llama of 7 million weights in bf16, with heads of 64."""
    folder = save_model(
        tmp_path_factory.mktemp("gpu") / "base", dtype=torch.bfloat16, hidden_size=512, intermediate_size=1024,
        num_hidden_layers=4, num_attention_heads=8, num_key_value_heads=2, max_position_embeddings=2048,
        initializer_range=0.03,
    )  # fmt: skip
    names, vocabulary = folder / "config.json", Tokenizer.from_file(str(folder / "tokenizer.json"))
    bos, eos, pad = (vocabulary.token_to_id(token) for token in SPECIALS)
    values = {**json.loads(names.read_text()), "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
    names.write_text(json.dumps(values, indent=2))
    return Base(str(folder), folder)


def settings_in(place: Path, **train: Any) -> tuple[Config, RunFolder]:
    """Settings of a short run on the GPU, with its records."""
    values = {
        "max_steps": 8, "batch_size": 2, "gradient_accumulation_steps": 4, "max_length": 512, "save_steps": 3,
        "learning_rate": 1e-3, "warmup_steps": 2,
    }  # fmt: skip
    settings = config_file.build({"run": {"name": "r", "folder": str(place)}, "train": {**values, **train}})
    folder = folder_of(settings)
    write_records(folder)
    return settings, folder


def offline() -> dict[str, str]:
    """The environment of a process without a network that finds this repository."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), os.environ.get("PYTHONPATH")]))
    return {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}


def call(script: str, *arguments: str, expect: int = 0) -> str:
    """Run Python code in a process of its own and return its stdout."""
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, timeout=300, env=offline()
    )
    assert done.returncode == expect, done.stderr[-4000:]
    return done.stdout


def log_of(path: Path) -> list[dict[str, Any]]:
    """The steps of a training log."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def has_unsloth() -> bool:
    """Whether Unsloth is installed; it is not imported here."""
    import importlib.util

    return importlib.util.find_spec("unsloth") is not None
