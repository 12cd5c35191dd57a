"""Train in a process of its own, or in several: start it, pass Ctrl-C on, and return its outcome or raise its error.

`accelerate launch` starts several; nothing here distributes anything.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.core import console, hardware, signals, streams
from toolkit.core.config import Config
from toolkit.core.errors import INTERRUPTED, MISSING, ToolkitError
from toolkit.core.files import naming, scratch_folder
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.train import parallel, relay

PACKAGE = Path(__file__).parents[2]
WORKER = ["-m", "toolkit.train.worker"]


def run_training(config: Config, folder: RunFolder, base: Base, *, restart: bool = False, gpus: int = 1) -> Outcome:
    """Do what `train` does, in another process; `gpus` > 1 starts that many through accelerate's launcher.

    If Unsloth turns out not to work and the settings leave the choice, PEFT replaces it. If memory runs out, the next
    process continues from the last checkpoint with half the micro-batch and twice the accumulation. A process that a
    launcher started as one of several trains itself. Raises what `train` raises.
    """
    if hardware.launched():
        from toolkit.train import train

        parallel.send_request({"base": [base.label, str(base.folder), base.commit], "restart": restart})
        return train(config, folder, base, restart=restart)
    request = request_of(config, folder, base, restart=restart)
    times_out_of_memory = 0
    while True:
        found = run_worker(request, gpus)
        if found.get("unsloth_error") and config.train.backend == "auto":
            request["avoid"] = f"Unsloth does not work here ({found['unsloth_error']})"
            console.warn(f"{request['avoid']}; PEFT trains instead")
        elif found.get("smaller"):
            request |= {"at_most": found["smaller"], "restart": False}
            times_out_of_memory += 1
            console.warn(
                f"{found['error']['message']}; continuing from the last checkpoint "
                f"in micro-batches of {found['smaller']}, and more of them per step: the same records, the same result"
            )
        else:
            break
    if found.get("interrupted"):
        raise KeyboardInterrupt
    if "error" in found:
        raise ToolkitError(**found["error"])
    figures = {**found["figures"], "times_out_of_memory": times_out_of_memory}
    return Outcome([Path(path) for path in found["outputs"]], figures, found["warning"])


def request_of(config: Config, folder: RunFolder, base: Base, *, restart: bool = False) -> dict[str, Any]:
    """Return the request for `worker.py`, as JSON values."""
    return {
        "config": config.model_dump(mode="json", by_alias=True),
        "base": {"label": base.label, "folder": str(base.folder), "commit": base.commit},
        "restart": restart,
        "avoid": "",
        "at_most": 0,
        "quiet": console.is_quiet(),
        "log": str(folder.log) if folder.log.is_file() else "",
        "lines": "",
    }


def follow(config: Config, folder: RunFolder) -> None:
    """Run as one of several processes, but not the first: train what the first one asks for, if it does."""
    from toolkit.train import train

    request = parallel.wait_for_request()
    if request is not None:
        label, place, commit = request["base"]
        with parallel.silent():
            train(config, folder, Base(label, Path(place), commit), restart=request["restart"])


def run_worker(request: dict[str, Any], gpus: int) -> dict[str, Any]:
    """Run `worker.py` as one process, or as `gpus` of them, and return its answer."""
    with scratch_folder("training") as place, relay.lines_of_worker(place) as lines:
        asked, answer = place / "request.json", place / "answer.json"
        with naming(asked):
            asked.write_text(json.dumps({**request, "lines": lines.name}), encoding="utf-8")
        called = [*_launcher(gpus, place), *WORKER, str(asked), str(answer)]
        # A session of its own: Ctrl-C reaches this process alone, which passes it on once.
        process = subprocess.Popen(
            called,
            stdin=subprocess.DEVNULL,
            stdout=lines.output,
            stderr=lines.output,
            env=_environment(gpus),
            start_new_session=True,
            preexec_fn=parallel.die_with_parent,
        )
        try:
            with _passing_on(process, alone=gpus == 1) as passed_on:
                code = lines.wait(process)
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
        if answer.is_file():
            found: dict[str, Any] = json.loads(answer.read_text(encoding="utf-8"))
            streams.state().warnings.extend(found.pop("warnings", []))
            if found.get("interrupted") and gpus > 1 and not passed_on:  # the launcher ends all when one has died
                raise ToolkitError(parallel.ANOTHER_ENDED, hint=parallel.GOES_ON)
            return found
        last = lines.last()
    if code in (INTERRUPTED, *(-number for number in signals.stopping_signals())):
        return {"interrupted": True}
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    hint = f"{last}; the same command continues from the last checkpoint"
    if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
        hint = "the system kills a process that takes too much memory: see `toolkit doctor`; the same command continues"
    raise ToolkitError(f"the training process {how}", hint=hint)


def _launcher(gpus: int, place: Path) -> list[str]:
    if gpus == 1:
        return [sys.executable]
    import torch

    there = torch.cuda.device_count()
    if there and gpus > there:
        raise ToolkitError(
            f"--gpus {gpus}, but this machine has {there}", hint=f"use --gpus {there} at most", exit_code=MISSING
        )
    # Without GPUs the processes train on the CPU, which is useful only for tests.
    how = ["--multi_gpu", "--num_machines", "1", "--num_processes", str(gpus), "--main_process_port", "0"]
    return [
        sys.executable,
        "-P",
        "-m",
        "accelerate.commands.launch",
        *how,
        "--mixed_precision=no",
        "--dynamo_backend=no",
        f"--log_dir={place / 'launcher'}",  # else it makes a folder of its own, which stays
    ]


def _environment(gpus: int) -> dict[str, str]:
    """Return this process's environment, with the package importable and torch's blocks able to grow.

    A process that trains alone sees the first GPU only: with several, transformers' trainer takes all of them for
    `nn.DataParallel`, which TRL refuses.
    """
    paths = [str(PACKAGE), *filter(None, [os.environ.get("PYTHONPATH")])]
    found = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", **os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    if gpus == 1:
        found["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    return found


@contextmanager
def _passing_on(process: "subprocess.Popen[bytes]", *, alone: bool) -> Iterator[list[int]]:
    """Pass signals that ask for an end on to the process; it ends after its step, and this process waits for it.

    Yields the list of signals that came.

    To a process that trains `alone` Ctrl-C goes as SIGTERM: while it still imports, SIGINT would print a traceback.
    """

    came: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        came.append(number)
        if number == signal.SIGHUP:
            streams.hang_up()
        if process.poll() is None:
            process.send_signal(signal.SIGTERM if alone and number == signal.SIGINT else number)

    with signals.handled(pass_on):
        yield came
