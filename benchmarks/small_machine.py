"""The whole job for a model of Llama-3.1-8B's shape on a machine with little memory.

    python benchmarks/small_machine.py --work DIR [--layers 32] [--ram 12] [--gpu-memory 15] [--rows auto]

Makes a random-weight base (bfloat16, 128,256 tokens) and runs each stage of `toolkit` as a process of its own, in a
memory control group that holds --ram GB, the page cache included: what a machine with that much memory would do.
Prints for each stage its seconds, its own memory at the peak, the page cache at the peak, and the disk at the peak.
With a CUDA GPU it trains a few steps in 4 bits, and another process holds all GPU memory but --gpu-memory GB.
Without one the adapter is random. Needs root, for the control group. Everything in DIR is removed at the end.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from wide_model import claimed, make_adapter, make_base, taken, uncached

REPOSITORY = Path(__file__).parents[1]
MARK = ".made-by-benchmarks-small-machine"  # says that all in a folder may be removed
GROUP = "toolkit-benchmark"
HOLD = """
import sys, time, torch
free = torch.cuda.mem_get_info()[0] - int(float(sys.argv[1]) * 1e9)
held = torch.empty(max(free, 0), dtype=torch.uint8, device="cuda")
print("held", flush=True)
time.sleep(1e6)
"""


@dataclass(frozen=True)
class Group:
    """A memory control group: its folder, and the names of its files and counters in this kernel's version."""

    folder: Path
    limit: str
    own: str
    cache: str

    def counters(self) -> tuple[int, int]:
        """Return the bytes of the processes' own memory and of the page cache."""
        lines = (self.folder / "memory.stat").read_text().splitlines()
        found = {name: int(value) for name, value in (line.split() for line in lines)}
        return found[self.own], found[self.cache]


@dataclass(frozen=True)
class Cost:
    """What one stage took at its peak, in bytes, and its seconds."""

    seconds: float
    own: int
    cache: int
    disk: int


def main() -> None:
    """Make the base, run the stages, print one line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder with 40 GB of room")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--ram", type=float, default=12.0, help="GB, the page cache included")
    parser.add_argument("--gpu-memory", type=float, default=15.0, help="GB that training finds free")
    parser.add_argument("--rows", default="auto", help="validate.rows")
    arguments = parser.parse_args()
    work = claimed(arguments.work.resolve(), MARK)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        (work / MARK).touch()
        make_base(work / "base", arguments.layers)
        with limited(arguments.ram) as group, holding(arguments.gpu_memory) as gpu:
            report(work, group, arguments, gpu=gpu)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def report(work: Path, group: Group, arguments: argparse.Namespace, *, gpu: bool) -> None:
    """Run every stage, and print its line."""
    uncached(work / "base")
    settings = work / "job.toml"
    settings.write_text(
        f"""[run]
name = "small"
folder = "{work}"
[data]
source = "{REPOSITORY / "data" / "sample.csv"}"
test = 0.5
[model]
base = "{work / "base"}"
load_in_4bit = {"true" if gpu else "false"}
[train]
max_steps = 8
[export]
quantizations = ["Q8_0", "Q4_K_M"]
[validate]
rows = {arguments.rows if arguments.rows.isdigit() else f'"{arguments.rows}"'}
max_kl = {{ K = 1000.0 }}  # no rounding leaves much of random weights
"""
    )
    print(f"{arguments.layers} layers, {arguments.ram:g} GB of memory, {len(os.sched_getaffinity(0))} cores, "
          f"a base of {taken(work / 'base') / 1e9:.1f} GB")  # fmt: skip
    print(f"{'stage':<12}{'s':>8}{'own memory GB':>16}{'page cache GB':>16}{'disk beside the base GB':>26}", flush=True)
    peak = 0
    for stage in ("prepare", "train", "export", "validate"):
        if stage == "train" and not gpu:
            make_adapter(work / "small" / "adapter", arguments.layers)
            continue
        cost = run([stage, "-c", str(settings)], work, group)
        peak = max(peak, cost.disk)
        sizes = f"{cost.own / 1e9:>16.2f}{cost.cache / 1e9:>16.2f}{cost.disk / 1e9:>26.2f}"
        print(f"{stage:<12}{cost.seconds:>8.1f}{sizes}", flush=True)
    print(f"disk at the peak, with the base: {(peak + taken(work / 'base')) / 1e9:.1f} GB")
    found = json.loads((work / "small" / "report.json").read_text())
    rows = found["held_out"]["rows_scored"]
    for name, entry in found["quantizations"].items():
        print(f"{name}: mean KL {entry['mean_kl']:.3g}, over {rows} rows")


def run(arguments: list[str], work: Path, group: Group) -> Cost:
    """Run one stage inside the group; end this process with its output where it fails."""
    beside, seen, stop = taken(work / "base"), [0, 0, 0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.2):
            now = (*group.counters(), taken(work) - beside)
            seen[:] = [max(pair) for pair in zip(seen, now, strict=True)]

    def enter() -> None:
        (group.folder / "cgroup.procs").write_text(str(os.getpid()))

    watcher = threading.Thread(target=watch)
    watcher.start()
    started = time.perf_counter()
    try:
        command = [sys.executable, "-m", "toolkit", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
        done = subprocess.run(command, cwd=work, env=environment, capture_output=True, text=True, preexec_fn=enter)
        seconds = time.perf_counter() - started
    finally:
        stop.set()
        watcher.join()
    if done.returncode:
        sys.exit(f"{arguments[0]} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    return Cost(seconds, *seen)


@contextlib.contextmanager
def limited(gigabytes: float) -> Iterator[Group]:
    """Make a control group that holds that much memory, of version 1 or 2; remove it at the end."""
    first, second = Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")
    if (first / "memory.limit_in_bytes").exists():
        group = Group(first / GROUP, "memory.limit_in_bytes", "total_rss", "total_cache")
    elif "memory" in (second / "cgroup.subtree_control").read_text():
        group = Group(second / GROUP, "memory.max", "anon", "file")
    else:
        sys.exit("no memory control group here: nothing can be limited")
    try:
        group.folder.mkdir(exist_ok=True)
    except PermissionError:
        sys.exit(f"{group.folder} cannot be made: run this as root")
    (group.folder / group.limit).write_text(str(int(gigabytes * 1e9)))
    try:
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.folder.rmdir()


@contextlib.contextmanager
def holding(left: float) -> Iterator[bool]:
    """Hold all of the GPU's memory but `left` GB; tell whether there is a GPU."""
    import torch

    if not torch.cuda.is_available():
        yield False
        return
    with subprocess.Popen([sys.executable, "-c", HOLD, str(left)], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        try:
            yield True
        finally:
            holder.kill()


if __name__ == "__main__":
    main()
