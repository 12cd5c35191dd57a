"""Checkpoints: written aside and renamed, so that one that has its name is whole, whenever the process is killed.

A checkpoint holds the adapter (safetensors), the optimizer with the state of the random numbers, and what tells whether
it belongs to this run. The learning rate and the records to come are functions of the step, and need no state.
"""

import contextlib
import hashlib
import json
import os
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.config import Config
from toolkit.run import RunFolder, clear_stale, sha256_of, writing_folder

MARKER = "toolkit.json"
ADAPTER = "adapter.safetensors"
STATE = "state.pt"
MOMENTS = "flat"  # how the optimizer's state is laid out: that of another layout cannot be taken over
KEPT = 2  # besides the best one
# These do not change what the weights become.
NOT_DECISIVE = {"save_steps", "eval_steps", "early_stopping", "packing", "gradient_checkpointing"}


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint: its folder, optimizer step, tokens seen, and the held-out loss where one was taken."""

    path: Path
    step: int
    tokens: int = 0
    held_out_loss: float | None = None


def fingerprint(config: Config, folder: RunFolder) -> str:
    """Hash all that decides the weights: settings of model, prompt and training, and the training records (hex)."""
    settings = {name: config.section(name) for name in ("model", "prompt")}
    settings["train"] = {key: value for key, value in config.section("train").items() if key not in NOT_DECISIVE}
    text = json.dumps(settings, sort_keys=True) + sha256_of(folder.side("train")) + MOMENTS
    return hashlib.sha256(text.encode("utf-8")).hexdigest()


def write(
    folder: Path,
    mark: str,
    step: int,
    tokens: int,
    adapter: dict[str, Any],
    state: dict[str, Any],
    held_out_loss: float | None = None,
) -> Checkpoint:
    """Write a checkpoint whole or not at all, and remove older ones; `adapter` maps names to tensors."""
    import torch
    from safetensors.torch import save_file

    target = folder / f"checkpoint-{step}"
    clear_stale([target])
    marker = {"step": step, "fingerprint": mark, "tokens": tokens, "held_out_loss": held_out_loss}
    with writing_folder(target) as fresh:
        save_file({name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}, fresh / ADAPTER)
        torch.save(state, fresh / STATE)
        (fresh / MARKER).write_text(json.dumps(marker) + "\n", encoding="utf-8")
        for path in fresh.iterdir():
            _to_disk(path)
    found = whole(folder, mark)
    best = min((c for c in found if c.held_out_loss is not None), key=_loss, default=None)
    keep = {checkpoint.step for checkpoint in found[-KEPT:]} | ({best.step} if best else set())
    for checkpoint in found:
        if checkpoint.step not in keep:
            shutil.rmtree(checkpoint.path, ignore_errors=True)
    return Checkpoint(target, step, tokens, held_out_loss)


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def read(checkpoint: Checkpoint) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a checkpoint's adapter and state, on the CPU; nothing but plain values and tensors is unpickled."""
    import torch
    from safetensors.torch import load_file

    state = torch.load(checkpoint.path / STATE, map_location="cpu", weights_only=True)
    return load_file(checkpoint.path / ADAPTER), state


def whole(folder: Path, mark: str) -> list[Checkpoint]:
    """Return the whole checkpoints with this fingerprint, in order of their steps."""
    found = []
    for marker in folder.glob(f"checkpoint-*/{MARKER}"):
        with contextlib.suppress(ValueError, KeyError, TypeError, OSError):
            values = json.loads(marker.read_text(encoding="utf-8"))
            if values["fingerprint"] == mark:
                tokens, loss = int(values["tokens"]), values["held_out_loss"]
                found.append(Checkpoint(marker.parent, int(values["step"]), tokens, loss))
    return sorted(found, key=lambda checkpoint: checkpoint.step)


def latest(folder: Path, mark: str) -> Checkpoint | None:
    """Find the whole checkpoint with the highest step and the same fingerprint; None if there is none."""
    found = whole(folder, mark)
    return found[-1] if found else None


def best(folder: Path, mark: str) -> Checkpoint | None:
    """Find the checkpoint with the lowest held-out loss, the earliest among equals; None where none was taken."""
    return min((c for c in whole(folder, mark) if c.held_out_loss is not None), key=_loss, default=None)


def _loss(checkpoint: Checkpoint) -> float:
    return float("inf") if checkpoint.held_out_loss is None else checkpoint.held_out_loss
