"""Quantize on this machine's card and on its CPU with ggml: are the bytes the same, and how fast is each?

    python benchmarks/quantize_gpu.py [--weights 134217728]

Prints, type by type: the self-test; how many blocks differ between card and ggml, over ordinary weights, hard rows of
many seeds and rows with infinities and NaN; the speed on the card from float32 and from bfloat16, from and to the
computer's memory, and ggml's on all cores. Ends with exit code 1 if a block differs.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from gguf import GGML_QUANT_SIZES
from gguf import GGMLQuantizationType as Type

from toolkit.export import gpu
from toolkit.export.gpu import hard, launch

COLUMNS = 4096
ROUNDS = 5
# Weights of Llama-3.1-8B as Q4_K_M stores them.
EIGHT_B = {Type.Q4_K: 6.50e9, Type.Q6_K: 1.53e9}
CARD = "cpu" if launch.INTERPRETED else "cuda"

started = time.monotonic()


def say(text: str) -> None:
    """Print a line with the time it came at."""
    print(f"{time.monotonic() - started:6.1f} s  {text}", flush=True)


def weights(count: int, seed: int) -> torch.Tensor:
    """Return Student-t(5) · 0.02 as (rows, COLUMNS) in float32 on the card."""
    generator = torch.Generator(CARD).manual_seed(seed)
    shape = (count // COLUMNS, COLUMNS)
    normal = torch.randn(shape, generator=generator, device=CARD)
    squares = sum(torch.randn(shape, generator=generator, device=CARD).square_() for _ in range(5))
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
    found = gpu.quantize(kind, rows, importance, CARD)
    size = GGML_QUANT_SIZES[kind][1]
    different = int((found != expected).reshape(-1, size).any(axis=1).sum())
    matrix = None if importance is None else torch.from_numpy(importance).to(CARD)
    flagged = int((launch.quantize_rows(kind, rows[: 1 << 13].to(CARD), matrix)[1] != 0).sum())
    say(
        f"{kind.name:5} {what:34} {rows.numel() / 1e6:8.2f} M weights, {len(found) // size} blocks: "
        f"{different} differ, {flagged} given back to ggml (first 8192 rows)"
    )
    return different, seconds


def best(function: Callable[[], object]) -> float:
    """Return the seconds of the fastest of some rounds, the card's work included."""
    function()
    found = []
    for _ in range(ROUNDS):
        if CARD == "cuda":
            torch.cuda.synchronize()
        start = time.monotonic()
        function()
        if CARD == "cuda":
            torch.cuda.synchronize()
        found.append(time.monotonic() - start)
    return min(found)


def speeds(kind: Type, count: int) -> dict[str, float]:
    """Return weights a second of the card, from memory of its own and from the computer's."""
    rows = weights(count, 9)
    importance = torch.rand(COLUMNS, device=CARD)
    found = {}
    for name, values in (("float32", rows), ("bfloat16", rows.bfloat16())):
        found[name] = count / best(lambda values=values: launch.quantize_rows(kind, values, None))
        there = values.cpu()
        found[f"{name} from and to the computer"] = count / best(
            lambda there=there: gpu.quantize(kind, there, None, CARD)
        )
    found["float32, importance matrix"] = count / best(lambda: launch.quantize_rows(kind, rows, importance))
    return found


def main() -> None:
    """Test, compare and measure every type."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", type=int, default=1 << 27, help="weights to compare, a type")
    parser.add_argument("--types", default=",".join(kind.name for kind in launch.KINDS))
    options = parser.parse_args()
    kinds = [Type[name] for name in options.types.split(",")]
    cores = len(os.sched_getaffinity(0))
    name = torch.cuda.get_device_name() if CARD == "cuda" else "Triton's interpreter"
    say(f"{name}, {cores} cores, torch {torch.__version__}, triton {launch.triton.__version__}")
    wrong = 0
    failed = {}
    for kind in kinds:
        for weighted in (False, True):
            for bf16 in (False, True):
                reason = gpu._tested(kind, weighted, bf16, CARD)
                failed[kind, weighted, bf16] = reason
                what = f"{kind.name:5} {'with' if weighted else 'without'} importance, {'bf16' if bf16 else 'f32'}"
                say(f"self-test {what}: {reason or 'passed'}")
    many = np.concatenate([hard.hard_rows(seed) for seed in range(40)] + [hard.hostile_rows(s) for s in range(40)])
    short = hard.importance_row()
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
            for what, values, matrix in checks:
                different, seconds = compare(kind, what, values, matrix, pool)
                wrong += different
                if what == "float32":
                    ggml[kind] = values.numel() / seconds
            del rows, some, checks
        measured = {}
        for kind in kinds:
            measured[kind] = speeds(kind, options.weights)
            say(f"{kind.name:5} ggml on {cores} cores {ggml[kind] / 1e6:.0f} M weights/s; on the card:")
            for what, rate in measured[kind].items():
                say(f"      {what:44} {rate / 1e6:9.0f} M weights/s  {rate / ggml[kind]:6.0f} × ggml")
    if set(EIGHT_B) <= set(measured):
        for what in measured[Type.Q4_K]:
            seconds = sum(count / measured[kind][what] for kind, count in EIGHT_B.items())
            say(f"Llama-3.1-8B as Q4_K_M (estimate), {what}: {seconds:.2f} s")
        say(f"… by ggml on {cores} cores: {sum(c / ggml[k] for k, c in EIGHT_B.items()):.1f} s")
    bad = [key for key, reason in failed.items() if reason]
    say(f"{wrong} blocks differ; {len(bad)} self-tests failed")
    sys.exit(1 if wrong or bad else 0)


if __name__ == "__main__":
    main()
