"""Where a training step's time goes: the toolkit's training of Llama-3.1-8B's shape in 4 bits, under torch.profiler.

    python benchmarks/profile_train.py [--base FOLDER] [--data CSV] [--records 8|64] [--base-compute bf16|fp8]

One process trains, with Unsloth. After WARM_UP steps, windows of --steps steps follow: without a profiler (the speed);
with the GPU and its calls recorded (waiting, launches); with the operations' shapes too (the table, since shapes tell
LoRA's thin products from the frozen ones); and with each thread's Python function noted every millisecond (where Python
is). The GPU waits in the wall time in which no kernel and no copy runs. Without a base folder the random-weight model
of `four_bit_model.py` is made first.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import train as speeds  # the benchmark beside this file
from step_trace import OTHER, busy, gaps, kernels_of, part_of, summed
from training_ways import WARM_UP, WAYS

WINDOWS = ("alone", "GPU", "shapes", "Python")
DEAREST = 12


class Sampler(threading.Thread):
    """Note every millisecond in which function of Python each other thread is; rough, since it needs the same lock."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.found: list[tuple[str, float]] = []
        self.ended = threading.Event()

    def run(self) -> None:
        """Sample until `ended` is set."""
        names = {thread.ident: thread.name for thread in threading.enumerate()}
        before, interval = time.perf_counter(), sys.getswitchinterval()
        sys.setswitchinterval(1e-4)
        while not self.ended.wait(0.001):
            now = time.perf_counter()
            for number, frame in sys._current_frames().items():
                thread = names.get(number, "backward")  # torch's own threads have no name in Python
                if thread in ("MainThread", "backward") or "Dummy" in thread:
                    place = Path(frame.f_code.co_filename)
                    name = f"{'main' if thread == 'MainThread' else 'backward'} {place.parent.name}/{place.name}"
                    self.found.append((f"{name}:{frame.f_lineno} {frame.f_code.co_name}", (now - before) * 1e6))
            before = now
        sys.setswitchinterval(interval)


class Window:
    """A number of steps under observation; `kind` says of what."""

    def __init__(self, kind: str, folder: Path) -> None:
        activity = torch.profiler.ProfilerActivity
        seen = {"GPU": [activity.CUDA], "shapes": [activity.CPU, activity.CUDA]}.get(kind)
        self.profiler = torch.profiler.profile(activities=seen, record_shapes=kind == "shapes") if seen else None
        self.sampler = Sampler() if kind == "Python" else None
        self.file = folder / f"{kind}.json"

    def open(self, step: int) -> None:
        """Begin; the GPU is idle then."""
        torch.cuda.synchronize()
        if self.profiler:
            self.profiler.start()
        if self.sampler:
            self.sampler.start()
        self.first, self.began = step, time.perf_counter()

    def close(self, step: int, job: Any) -> None:
        """End, once the GPU has done all."""
        torch.cuda.synchronize()
        self.seconds = time.perf_counter() - self.began
        self.tokens = int(job.step_tokens[self.first : step].sum())
        if self.sampler:
            self.sampler.ended.set()
            self.sampler.join()
        if self.profiler:
            self.profiler.stop()
            self.profiler.export_chrome_trace(str(self.file))
            self.profiler = None

    def events(self) -> list[dict[str, Any]]:
        """Return what was recorded."""
        found = json.loads(self.file.read_text(encoding="utf-8", errors="replace"))["traceEvents"]
        return [event for event in found if event.get("ph") == "X"]


class Enough(Exception):
    """All windows were seen: what follows training is left out."""


def watched(settings: Path, base: Path, folder: Path, steps: int) -> dict[str, Window]:
    """Train in this process, as `toolkit train` does, and return the windows."""
    from toolkit.core.config_file import load_config
    from toolkit.core.run_folder import folder_of
    from toolkit.model.base import Base
    from toolkit.train import train, unsloth_backend

    config = load_config(settings)
    if config.train.backend == "unsloth":
        unsloth_backend.make_unsloth_backend()  # before transformers and TRL, which it patches
    from transformers import TrainerCallback

    from toolkit.train import trainer as trainers

    windows = {kind: Window(kind, folder) for kind in WINDOWS}
    begins = {WARM_UP + number * (steps + 1): window for number, window in enumerate(windows.values())}
    real = trainers.make

    class Watch(TrainerCallback):  # type: ignore[misc]
        """Open and close windows between steps; a step lies between two of them."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            ended = begins.get(state.global_step - steps)
            if ended:
                ended.close(state.global_step, self.job)
                if ended is windows[WINDOWS[-1]]:
                    raise Enough
            if state.global_step in begins:
                begins[state.global_step].open(state.global_step)

    def make(job: Any, *arguments: Any) -> Any:
        trainer = real(job, *arguments)
        watch = Watch()
        watch.job = job
        trainer.add_callback(watch)
        return trainer

    try:
        with mock.patch.object(trainers, "make", make):
            train(config, folder_of(config), Base(str(base), base))
    except Enough:
        return windows
    raise SystemExit("training ended before the windows were seen")


def report(windows: dict[str, Window], steps: int, vocabulary: int) -> None:
    """Print what the windows show, in milliseconds a step."""
    a_step = 1e3 * steps  # microseconds of a window → milliseconds a step
    for kind, window in windows.items():
        speed = f"{window.tokens / window.seconds:,.0f} tokens/s"
        print(
            f"window {kind}: {window.seconds / steps * 1e3:.1f} ms a step, {window.tokens / steps:,.0f} tokens, {speed}"
        )
    events = windows["GPU"].events()
    kernels, wall = kernels_of(events), windows["GPU"].seconds * 1e6
    calls = [event for event in events if event.get("cat") in ("cuda_runtime", "cuda_driver")]
    launches = [call["dur"] for call in calls if "LaunchKernel" in call["name"]]
    waits = [call["dur"] for call in calls if "Synchronize" in call["name"]]
    idle = wall - busy(kernels)
    copies = sum(kernel.is_copy for kernel in kernels)
    print(
        f"GPU: waits {idle / a_step:.1f} ms a step, {idle / wall:.1%} of the time; "
        f"{(len(kernels) - copies) / steps:,.0f} kernels and {copies / steps:,.0f} copies and fills a step\n"
        f"CPU: {(wall - sum(waits)) / a_step:.1f} ms a step in which it does not wait for the GPU, "
        f"{sum(launches) / a_step:.1f} of them in {len(launches) / steps:,.0f} launching calls; "
        f"{len(waits) / steps:.1f} waits a step, {sum(waits) / a_step:.1f} ms"
    )
    kernels = kernels_of(windows["shapes"].events())
    total = sum(kernel.length for kernel in kernels)
    print("\n| part | ms a step | of the GPU's time | kernels a step |\n|---|---|---|---|")
    for part, length, count in summed((part_of(kernel, vocabulary), kernel.length) for kernel in kernels):
        print(f"| {part} | {length / a_step:.2f} | {length / total:.1%} | {count / steps:,.0f} |")
    _list("dearest kernels", summed((kernel.name, kernel.length) for kernel in kernels), a_step, steps)
    unknown = [kernel for kernel in kernels if part_of(kernel, vocabulary) == OTHER]
    _list(OTHER, summed((kernel.name, kernel.length) for kernel in unknown), a_step, steps)
    _list(
        "waiting, by the kernel that ended it", summed((name, length) for length, name in gaps(kernels)), a_step, steps
    )
    sampler = windows["Python"].sampler
    _list("places in Python", summed(sampler.found if sampler else []), a_step, steps)


def _list(title: str, found: list[tuple[str, float, int]], a_step: float, steps: int) -> None:
    print(f"\n{title}, ms and times a step:")
    for name, length, count in found[:DEAREST]:
        print(f"  {length / a_step:8.2f}  {count / steps:7.1f}  {' '.join(name.split())[:110]}")


def main() -> None:
    """Prepare the records, train, and print the report."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--base", type=Path)
    parser.add_argument("--data", type=Path, default=speeds.REPOSITORY / "data/raw/medquad-2479.csv")
    parser.add_argument("--records", type=int, choices=(8, 64), default=8)
    parser.add_argument("--base-compute", choices=("bf16", "fp8"), default="bf16")
    parser.add_argument("--steps", type=int, default=5, help="of each window")
    arguments = parser.parse_args()
    sys.path.insert(0, str(speeds.REPOSITORY))
    with tempfile.TemporaryDirectory() as name:
        folder, base = Path(name), arguments.base
        if base is None:
            base = folder / "base"
            speeds.child([str(Path(__file__).with_name("four_bit_model.py")), str(base)])
        way = replace(
            WAYS["toolkit" if arguments.records == 8 else "toolkit-wide"],
            steps=1.0, base_compute=arguments.base_compute,
        )  # fmt: skip
        needed = WARM_UP + len(WINDOWS) * (arguments.steps + 1)
        settings, _ = speeds.write_settings(way, base, arguments.data.resolve(), folder, needed)
        command = [sys.executable, "-m", "toolkit", "prepare", "-c", str(settings), "--json"]
        subprocess.run(command, cwd=speeds.REPOSITORY, stdout=subprocess.DEVNULL, check=True)
        windows = watched(settings, base, folder, arguments.steps)
        vocabulary = json.loads((base / "config.json").read_text(encoding="utf-8"))["vocab_size"]
        print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {way.label}, {arguments.base_compute}")
        report(windows, arguments.steps, vocabulary)


if __name__ == "__main__":
    main()
