"""The trainer's checkpoints: which of them are whole, and belong to this run.

transformers writes into `checkpoint-N` directly, so a killed save leaves half a folder under the highest number. A
marker that is written last, after all files are on disk, makes a checkpoint count.
"""

import contextlib
import hashlib
import json
import os
import shutil
from pathlib import Path

from toolkit.core.config import Config
from toolkit.core.files import sha256_of
from toolkit.core.run_folder import RunFolder

MARKER = "toolkit.json"
LAYOUT = "trl"  # of an optimizer's state; that of another layout cannot be taken over
# These do not change what the weights become.
NOT_DECISIVE = {"save_steps", "eval_steps", "early_stopping_patience", "packing", "gradient_checkpointing", "report_to"}


def fingerprint(config: Config, folder: RunFolder) -> str:
    """Hash all that decides the weights: settings of model, prompt and training, and the training records (hex)."""
    settings = {name: config.section(name) for name in ("model", "prompt")}
    settings["train"] = {key: value for key, value in config.section("train").items() if key not in NOT_DECISIVE}
    text = json.dumps(settings, sort_keys=True) + sha256_of(folder.split_file("train")) + LAYOUT
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def place(folder: RunFolder, run: str) -> Path:
    """Return the folder of one run's checkpoints; runs of other settings have their own beside it."""
    return folder.checkpoints / run[:12]


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a `checkpoint-N` folder."""
    return int(checkpoint.name.rpartition("-")[2])


def mark(checkpoint: Path, run: str) -> None:
    """Make a checkpoint that all processes have written count for the run of this fingerprint."""
    for path in checkpoint.iterdir():
        _to_disk(path)
    unfinished = checkpoint / f"{MARKER}.new"
    unfinished.write_text(json.dumps({"fingerprint": run}) + "\n", encoding="utf-8")
    _to_disk(unfinished)
    unfinished.replace(checkpoint / MARKER)
    _to_disk(checkpoint)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def is_whole(checkpoint: Path, run: str) -> bool:
    """Tell whether a checkpoint was written to its end by the run of this fingerprint."""
    with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
        return bool(json.loads((checkpoint / MARKER).read_text(encoding="utf-8"))["fingerprint"] == run)
    return False


def newest(folder: Path, run: str) -> Path | None:
    """Return the whole checkpoint of this run with the highest step, None if there is none."""
    found = [path for path in folder.glob("checkpoint-*") if is_whole(path, run)]
    return max(found, key=step_of, default=None)


def clear_unfinished(folder: Path, run: str) -> None:
    """Remove what a killed save left, which the trainer would count among its own."""
    for path in folder.glob("checkpoint-*"):
        if not is_whole(path, run):
            shutil.rmtree(path, ignore_errors=True)


def clear_other_runs(folder: RunFolder, run: str) -> None:
    """Remove the checkpoints of other settings, whose adapter was replaced by a finished run."""
    for path in folder.checkpoints.iterdir():
        if path.is_dir() and path != place(folder, run):
            shutil.rmtree(path, ignore_errors=True)
