"""Small runs on the GPU: a random base, settings with records, and processes of their own to train in."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer

from tests.support.models import save_model
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
    name_specials(folder)
    return Base(str(folder), folder)


def name_specials(folder: Path) -> None:
    """Write into a base's config.json which of its tokens begin, end and fill up; Unsloth looks there."""
    config, vocabulary = folder / "config.json", Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokens = json.loads((folder / "tokenizer_config.json").read_text())
    kinds = [kind for kind in ("bos", "eos", "pad") if tokens.get(f"{kind}_token")]
    ids = {f"{kind}_token_id": vocabulary.token_to_id(tokens[f"{kind}_token"]) for kind in kinds}
    config.write_text(json.dumps({**json.loads(config.read_text()), **ids}, indent=2))


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


@dataclass(frozen=True)
class Step:
    """The first step by one backend: its tensors by name, the rows of the micro-batch, and why it was refused, if so.

    `packed losses` has one loss, of eight records in one micro-batch, `single losses` theirs one by one. A gradient has
    the name of its weight behind `packed` or `single`.
    """

    tensors: dict[str, torch.Tensor]
    rows: int
    refused: str

    @property
    def loss(self) -> float:
        """The loss of the eight records."""
        return float(self.tensors["packed losses"].item())

    def trained(self) -> list[str]:
        """Return the names of the weights that have a gradient."""
        return sorted(name.removeprefix("packed ") for name in self.tensors if name.startswith("packed base_model"))

    def gradient(self, label: str) -> torch.Tensor:
        """Return all gradients of one layout, `packed` or `single`, in one vector."""
        return torch.cat([self.tensors[f"{label} {name}"].reshape(-1) for name in self.trained()]).double()


def distance(one: torch.Tensor, other: torch.Tensor) -> float:
    """Return the norm of the difference over the norm of the first."""
    return float((one - other).norm() / one.norm())


@dataclass
class Probe:
    """A process that computes a first step, and may still be at it; the files that it writes."""

    process: "subprocess.Popen[bytes]"
    place: Path
    seconds: int = field(default=300)

    def step(self) -> Step:
        """Wait for the process and return what it computed; fails with the last lines that it printed."""
        code = self.process.wait(self.seconds)
        assert code == 0, f"exit code {code}:\n{self.said()}"
        said = json.loads((self.place / "out.json").read_text())
        return Step({} if said["refused"] else load_file(self.place / "out.safetensors"), **said)

    def said(self, lines: int = 40) -> str:
        """Return the last lines that the process printed."""
        return "\n".join((self.place / "printed").read_text(errors="replace").splitlines()[-lines:])


@contextmanager
def probing(place: Path, base: Base, backend: str, way: str = "4-bit", **train: Any) -> Iterator[Probe]:
    """Start `gpu_probe.py` in a process of its own, which does not outlive the block."""
    place.mkdir(parents=True, exist_ok=True)
    settings, _ = settings_in(place, backend=backend, **train)
    (place / "config.json").write_text(settings.model_dump_json(by_alias=True))
    script, out = REPOSITORY / "tests/support/gpu_probe.py", place / "out.safetensors"
    # Unsloth writes compiled modules into the working folder, where two processes would meet.
    environment = {**offline(), "UNSLOTH_COMPILE_LOCATION": str(place / "compiled")}
    with (place / "printed").open("wb") as printed:
        process = subprocess.Popen(
            [sys.executable, script, backend, way, place / "config.json", base.folder, out],
            stdin=subprocess.DEVNULL,
            stdout=printed,
            stderr=subprocess.STDOUT,
            env=environment,
        )
    try:
        yield Probe(process, place)
    finally:
        process.kill()
        process.wait()


def log_of(path: Path) -> list[dict[str, Any]]:
    """The steps of a training log."""
    entries = [json.loads(line) for line in path.read_text().splitlines()]
    return [entry for entry in entries if "loss" in entry]


def has_unsloth() -> bool:
    """Whether Unsloth is installed; it is not imported here."""
    import importlib.util

    return importlib.util.find_spec("unsloth") is not None
