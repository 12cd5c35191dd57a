"""The trainer's checkpoints: which of them are complete and belong to this run.

transformers writes into `checkpoint-N` directly, so a killed save leaves half a folder under the highest number. A
checkpoint counts once it has a marker, which is written last, after all files are on disk.
"""

import contextlib
import hashlib
import json
import re
import shutil
import sys
from collections.abc import Container, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.files import naming, sha256_of, size_of_folder, to_disk
from toolkit.core.parsing import read_json_or_nothing
from toolkit.core.run_folder import RunFolder
from toolkit.core.setting_changes import changed_settings
from toolkit.core.train_settings import ENDLESS

MARKER = "toolkit.json"
STATE = "trainer_state.json"  # transformers' own, with the log
LAYOUT = "trl"  # of an optimizer's state; that of another layout cannot be loaded
LENGTH = {"train.max_steps", "train.num_train_epochs"}
# These do not change what the weights become.
NOT_DECISIVE = {
    "save_steps", "eval_steps", "max_eval_samples", "early_stopping_patience", "logging_steps", "packing",
    "gradient_checkpointing", "report_to", "allow_unexportable",
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """Everything that decides the weights of a run, as the mark of its checkpoints holds it.

    `settings` are those of model, prompt and training, as `section.key`; `records` is the training split's SHA-256.
    """

    settings: dict[str, Any]
    records: str
    layout: str = LAYOUT

    def equals(self, noted: Mapping[str, Any], left_out: Container[str] = ()) -> bool:
        """Tell whether a mark's text says the same but for some settings; a setting that it lacks had its default."""
        settings = noted.get("settings")
        if (noted.get("records"), noted.get("layout")) != (self.records, self.layout) or not isinstance(settings, dict):
            return False
        counted = {key: value for key, value in settings.items() if key.partition(".")[2] not in NOT_DECISIVE}
        return all(key in left_out for key in changed_settings(counted, self.settings))


def origin_of(config: Config, folder: RunFolder) -> Origin:
    """Return what decides the weights of a run, from its settings and its training records."""
    settings = {
        f"{section}.{key}": value
        for section in ("model", "prompt", "train")
        for key, value in config.section(section).items()
        if section != "train" or key not in NOT_DECISIVE
    }
    return Origin(settings, sha256_of(folder.split_file("train")))


def fingerprint(config: Config, folder: RunFolder) -> str:
    """Hash everything that decides the weights: settings of model, prompt and training, and the training records (hex).

    The number of steps is left out if the learning rate does not depend on it. A run that an earlier version of the
    toolkit started, whose settings were the same but fewer, keeps the fingerprint that it has.
    """
    origin = origin_of(config, folder)
    left_out = LENGTH if config.train.lr_scheduler_type in ENDLESS else set()
    settings: dict[str, dict[str, Any]] = {}
    for key, value in origin.settings.items():
        if key not in left_out:
            section, _, name = key.partition(".")
            settings.setdefault(section, {})[name] = value
    text = json.dumps(settings, sort_keys=True) + origin.records + origin.layout
    own = hashlib.sha256(text.encode("utf-8")).hexdigest()
    if newest(place(folder, own), own) is not None:
        return own
    alike = [noted for _, noted in _marked(folder) if origin.equals(noted, left_out)]
    return str(alike[-1]["fingerprint"]) if alike else own


def _marked(folder: RunFolder) -> list[tuple[Path, dict[str, Any]]]:
    """Return all complete checkpoints of all runs with their marks, by their steps."""
    every = [path for run in folder.checkpoints.glob("*/") for path in _numbered(run)]
    marks = [(path, read_json_or_nothing(path / MARKER)) for path in sorted(every, key=step_of)]
    return [(path, noted) for path, noted in marks if path.parent == place(folder, str(noted.get("fingerprint")))]


def place(folder: RunFolder, run: str) -> Path:
    """Return the folder of one run's checkpoints; runs with other settings have their own next to it."""
    return folder.checkpoints / run[:12]


def step_of(checkpoint: Path) -> int:
    """Return the optimizer step of a `checkpoint-N` folder."""
    return int(checkpoint.name.rpartition("-")[2])


def _numbered(folder: Path) -> list[Path]:
    """Return the trainer's own checkpoints in a folder, not a copy that a user keeps next to them."""
    return [path for path in folder.glob("checkpoint-*") if re.fullmatch(r"checkpoint-[0-9]+", path.name)]


def held_out_steps(checkpoint: Path) -> set[int]:
    """Return the steps whose held-out loss a checkpoint knows."""
    history = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["log_history"]
    return {entry["step"] for entry in history if "eval_loss" in entry}


def mark(checkpoint: Path, run: str, origin: Origin | None = None) -> None:
    """Mark a checkpoint that all processes have written as complete, for the run of this fingerprint and origin."""
    for path in checkpoint.iterdir():
        to_disk(path)
    unfinished = checkpoint / f"{MARKER}.new"
    noted = {"fingerprint": run, **(asdict(origin) if origin else {})}
    with naming(unfinished):
        unfinished.write_text(json.dumps(noted) + "\n", encoding="utf-8")
    to_disk(unfinished)
    unfinished.replace(checkpoint / MARKER)
    to_disk(checkpoint)


def is_whole(checkpoint: Path, run: str) -> bool:
    """Tell whether the run of this fingerprint wrote a checkpoint completely."""
    return bool(read_json_or_nothing(checkpoint / MARKER).get("fingerprint") == run)


def newest(folder: Path, run: str, at_most: int = sys.maxsize) -> Path | None:
    """Return the complete checkpoint of this run with the highest step, up to `at_most`; None if there is none."""
    found = [path for path in _numbered(folder) if is_whole(path, run) and step_of(path) <= at_most]
    return max(found, key=step_of, default=None)


def of_another_length(folder: RunFolder, origin: Origin) -> Path | None:
    """Return the last complete checkpoint of a run that differs only in its number of steps, None if there is none."""
    found = [path for path, noted in _marked(folder) if origin.equals(noted, LENGTH)]
    return found[-1] if found else None


def bytes_of(config: Config, folder: RunFolder) -> int:
    """Return the bytes that this run's checkpoints take already, and that it does not need again."""
    if not folder.split_file("train").is_file():
        return 0
    return size_of_folder(place(folder, fingerprint(config, folder)))


def clear_unfinished(folder: Path, run: str) -> None:
    """Remove what a killed save left, which the trainer would count among its own."""
    for path in _numbered(folder):
        if not is_whole(path, run):
            shutil.rmtree(path, ignore_errors=True)


def clear_finished(config: Config, folder: RunFolder) -> None:
    """Remove a finished run's checkpoints where no run of more steps could continue from them; its logs stay."""
    if config.train.lr_scheduler_type not in ENDLESS:
        for path in _numbered(place(folder, fingerprint(config, folder))):
            shutil.rmtree(path, ignore_errors=True)


def clear_all(folder: Path) -> None:
    """Remove what the trainer wrote for one run, but no copy of a checkpoint that a user keeps there."""
    own = _numbered(folder)
    for path in folder.glob("*"):
        if path in own or not path.name.startswith("checkpoint-"):
            with contextlib.suppress(OSError):  # what cannot be removed only takes space
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def clear_other_runs(folder: RunFolder, run: str) -> None:
    """Remove the checkpoints of other settings; a finished run has replaced their adapter."""
    for path in folder.checkpoints.iterdir():
        if path.is_dir() and path != place(folder, run):
            clear_all(path)
            with contextlib.suppress(OSError):  # a user's copy is in it
                path.rmdir()
