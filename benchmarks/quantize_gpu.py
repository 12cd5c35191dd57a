"""Quantize on this machine's GPU and on its CPU with ggml: are the bytes the same, and how fast is each?

    python benchmarks/quantize_gpu.py [--weights 134217728] [--types Q4_K,Q6_K] [--plain]

Prints how fast bytes get to the GPU and back; then, type by type: the self-test; how many blocks differ between GPU
and ggml, over ordinary weights, hard rows of many seeds and rows with infinities and NaN; the speed on the GPU from
float32 and from bfloat16, from and to the computer's memory (in slabs and threads, as an export does it), and that of
the CPU: our kernels and ggml on all cores. Ends with exit code 1 if a block differs. `--plain` is float32 without an
importance matrix alone: one compilation a type instead of four.
"""

import argparse
import functools
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit import kernels
from toolkit.kernels import gpu
from toolkit.kernels.gpu import lanes, launch, test_vectors

COLUMNS = 4096
STEP = lanes.PIECE // COLUMNS  # rows of a slab
ROUNDS = 5
# Weights of Llama-3.1-8B as Q4_K_M stores them.
EIGHT_B = {Type.Q4_K: 6.50e9, Type.Q6_K: 1.53e9}
GPU = "cpu" if launch.INTERPRETED else "cuda"

started = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time it came at."""
    print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)


def weights(count: int, seed: int) -> torch.Tensor:
    """Return Student-t(5) · 0.02 as (rows, COLUMNS) in float32 on the GPU."""
    generator = torch.Generator(GPU).manual_seed(seed)
    shape = (count // COLUMNS, COLUMNS)
    normal = torch.randn(shape, generator=generator, device=GPU)
    squares = sum(torch.randn(shape, generator=generator, device=GPU).square_() for _ in range(5))
    return normal.div_((squares / 5).sqrt_()).mul_(0.02)


def by_ggml(kind: Type, rows: np.ndarray, importance: np.ndarray | None, pool: ThreadPoolExecutor) -> np.ndarray:
    """Quantize rows with ggml, split over the pool's threads."""
    parts = np.array_split(rows, min(len(rows), 64))
    return np.concatenate(list(pool.map(lambda part: gpu.reference(kind, part, importance), parts)))


def compare(
    kind: Type, what: str, rows: torch.Tensor, importance: np.ndarray | None, pool: ThreadPoolExecutor
) -> tuple[int, float]:
    """Return how many blocks differ, and the seconds that ggml took."""
    expected_from = rows.float().cpu().numpy()
    start = time.monotonic()
    expected = by_ggml(kind, expected_from, importance, pool)
    seconds = time.monotonic() - start
    found = gpu.quantize(kind, rows, importance, GPU)
    size = GGML_QUANT_SIZES[kind][1]
    different = int((found != expected).reshape(-1, size).any(axis=1).sum())
    matrix = None if importance is None else torch.from_numpy(importance).to(GPU)
    flagged = int((launch.quantize_rows(kind, rows[: 1 << 13].to(GPU), matrix)[1] != 0).sum())
    say(
        f"{kind.name:5} {what:34} {rows.numel() / 1e6:8.2f} M weights, {len(found) // size} blocks: "
        f"{different} differ, {flagged} given back to ggml (first 8192 rows)"
    )
    return different, seconds


def best(function: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some rounds, the GPU's work included."""
    function()
    found = []
    for _ in range(ROUNDS):
        if GPU == "cuda":
            torch.cuda.synchronize()
        start = time.monotonic()
        function()
        if GPU == "cuda":
            torch.cuda.synchronize()
        found.append(time.monotonic() - start)
    return min(found)


def in_slabs(
    kind: Type, rows: np.ndarray, pool: ThreadPoolExecutor, run: Callable[[np.ndarray, np.ndarray], object]
) -> Callable[[], object]:
    """Return what quantizes rows of the computer's memory slab by slab in the pool, as an export does.

    The results have their memory before: taking it anew costs more than the GPU does.
    """
    size, stored = GGML_QUANT_SIZES[kind]
    parts = [rows[start : start + STEP] for start in range(0, len(rows), STEP)]
    outs = [np.zeros(part.size // size * stored, np.uint8) for part in parts]
    return lambda: list(pool.map(run, parts, outs))


def speeds(kind: Type, count: int, pool: ThreadPoolExecutor, plain: bool) -> dict[str, float]:
    """Return weights a second of the GPU, from memory of its own and from the computer's, and of the CPU's kernels."""
    rows = weights(count, 9)
    found = {"float32": count / best(lambda: launch.quantize_rows(kind, rows, None))}
    there = [("float32", rows.cpu().numpy())]
    if not plain:
        narrow, importance = rows.bfloat16(), torch.rand(COLUMNS, device=GPU)
        found["bfloat16"] = count / best(lambda: launch.quantize_rows(kind, narrow, None))
        found["float32, importance matrix"] = count / best(lambda: launch.quantize_rows(kind, rows, importance))
        there.append(("bfloat16", narrow.cpu().view(torch.int16).numpy().view(np.uint16)))
    cpu = kernels.routine(int(kind))
    for name, values in there:
        on_gpu = in_slabs(kind, values, pool, lambda part, out: gpu.quantize_into(kind, part, out, None, GPU))
        on_cpu = in_slabs(kind, values, pool, lambda part, out: cpu.run(part, out, None))
        if GPU == "cuda":  # Triton's interpreter knows one thread only
            found[f"{name} from and to the computer"] = count / best(on_gpu)
        found[f"{name}, the CPU's own ({cpu.name})"] = count / best(on_cpu)
    return found


def transfers() -> None:
    """Say how many bytes a second get to the GPU and back, from ordinary memory and from locked memory."""
    there = torch.empty(4 * lanes.PIECE, dtype=torch.uint8, device=GPU)
    ordinary = torch.zeros(4 * lanes.PIECE, dtype=torch.uint8)
    locked = lanes.locked(4 * lanes.PIECE)
    for name, here in (("ordinary", ordinary), ("locked", locked)):
        to = len(here) / best(functools.partial(there.copy_, here, non_blocking=True))
        back = len(here) / best(functools.partial(here.copy_, there, non_blocking=True))
        say(f"{name} memory: {to / 1e9:.1f} GB/s to the GPU, {back / 1e9:.1f} GB/s back, {len(here) >> 20} MiB a time")
    say(f"locked memory is {'' if GPU == 'cuda' and locked.is_pinned() else 'not '}to be had here")


def main() -> None:
    """Test, compare and measure every type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=1 << 27, help="weights to compare, a type")
    parser.add_argument("--types", default=",".join(kind.name for kind in gpu.KINDS))
    parser.add_argument("--plain", action="store_true", help="float32 without an importance matrix alone")
    options = parser.parse_args()
    kinds = [Type[name] for name in options.types.split(",")]
    cores = len(os.sched_getaffinity(0))
    name = torch.cuda.get_device_name() if GPU == "cuda" else "Triton's interpreter"
    say(f"{name}, {cores} cores, torch {torch.__version__}, triton {metadata.version('triton')}")
    transfers()
    wrong = 0
    failed = {}
    either = (False,) if options.plain else (False, True)
    for kind in kinds:
        for weighted in either:
            for bf16 in either:
                reason = gpu._tested(kind, weighted, bf16, GPU)
                failed[kind, weighted, bf16] = reason
                what = f"{kind.name:5} {'with' if weighted else 'without'} importance, {'bf16' if bf16 else 'f32'}"
                say(f"self-test {what}: {reason or 'passed'}")
    many = np.concatenate(
        [test_vectors.hard_rows(seed) for seed in range(40)] + [test_vectors.hostile_rows(s) for s in range(40)]
    )
    short = test_vectors.importance_row()
    importance = np.random.default_rng(5).random(COLUMNS).astype(np.float32) ** 3
    ggml = {}
    with ThreadPoolExecutor(cores) as pool:
        for kind in kinds:
            rows = weights(options.weights, 7)
            some = rows[: max(1, len(rows) // 4)]
            edge = torch.from_numpy(many)
            checks = [
                ("float32", rows, None), ("bfloat16", some.bfloat16(), None),
                ("float32, importance", some, importance), ("bfloat16, importance", some.bfloat16(), importance),
                ("hard and hostile", edge, None), ("hard and hostile, bfloat16", edge.bfloat16(), None),
                ("hard and hostile, importance", edge, short),
            ]  # fmt: skip
            if options.plain:
                checks = [check for check in checks if check[2] is None and check[1].dtype == torch.float32]
            for what, values, matrix in checks:
                different, seconds = compare(kind, what, values, matrix, pool)
                wrong += different
                if what == "float32":
                    ggml[kind] = values.numel() / seconds
            del rows, some, checks
        measured = {}
        for kind in kinds:
            measured[kind] = speeds(kind, options.weights, pool, options.plain)
            say(f"{kind.name:5} ggml on {cores} cores {ggml[kind] / 1e6:.0f} M weights/s; here:")
            for what, rate in measured[kind].items():
                say(f"      {what:44} {rate / 1e6:9.0f} M weights/s  {rate / ggml[kind]:6.0f} × ggml")
    if set(EIGHT_B) <= set(measured):
        for what in (what for what in measured[Type.Q4_K] if what in measured[Type.Q6_K]):
            seconds = sum(count / measured[kind][what] for kind, count in EIGHT_B.items())
            say(f"Llama-3.1-8B as Q4_K_M (estimate), {what}: {seconds:.2f} s")
        say(f"… by ggml on {cores} cores: {sum(c / ggml[k] for k, c in EIGHT_B.items()):.1f} s")
    bad = [key for key, reason in failed.items() if reason]
    say(f"{wrong} blocks differ; {len(bad)} self-tests failed")
    sys.exit(1 if wrong or bad else 0)


if __name__ == "__main__":
    main()
