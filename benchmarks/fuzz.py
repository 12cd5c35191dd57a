"""The quantization kernels against libggml on random hard rows: every differing block is named by its seed.

    python benchmarks/fuzz.py [--weights 1e9] [--types Q4_K,Q6_K] [--seed 0]

Of every type that many weights: all families of toolkit/kernels/hard.py, rows of 256 to 4096, a third of them scaled
by a random power of ten, half with importance, half from bfloat16; each by every instruction set that this machine has.
The same seed gives the same rows. Exit code 1 if any byte differs.
"""

import argparse
import sys
import time
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit import kernels
from toolkit.core.hardware import cores
from toolkit.kernels.test_vectors import hard_rows, importance_for


@dataclass(frozen=True)
class Found:
    """One seed's result: weights, blocks given to libggml and all blocks (over the instruction sets), what differs."""

    weights: int
    referred: int
    blocks: int
    wrong: list[str]


def main() -> None:
    """Fuzz one type after the other and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=float, default=1e9, help="per type (default 1e9)")
    parser.add_argument("--types", default=",".join(name for name, _, _ in kernels.TYPES.values()))
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    arguments = parser.parse_args()
    library = kernels.opened()
    if library is None:
        sys.exit("the kernels are not compiled: python setup.py build_ext --inplace")
    numbers = {name: kind for kind, (name, _, _) in kernels.TYPES.items()}
    print(f"{', '.join(kernels.LEVELS[: library.level + 1])}; {cores()} threads; seeds from {arguments.seed}")
    print(f"{'type':<8}{'weights':>15}{'by libggml':>12}{'differ':>8}{'seconds':>9}")
    failed = False
    for name in arguments.types.split(","):
        started = time.perf_counter()
        found = list(fuzzed(library, numbers[name], arguments.weights, arguments.seed))
        wrong = [line for one in found for line in one.wrong]
        share = sum(one.referred for one in found) / sum(one.blocks for one in found)
        weights = sum(one.weights for one in found)
        print(f"{name:<8}{weights:>15,}{share:>12.2%}{len(wrong):>8}{time.perf_counter() - started:>9.0f}", flush=True)
        for line in wrong[:10]:
            print("  " + line)
        failed = failed or bool(wrong)
    sys.exit(failed)


def fuzzed(library: kernels.Library, kind: int, weights: float, seed: int) -> Iterator[Found]:
    """Work through seeds in threads until there were enough weights."""
    done = 0.0
    with ThreadPoolExecutor(cores()) as pool:
        running: set[Future[Found]] = set()
        while done < weights or running:
            while done < weights and len(running) < 2 * cores():
                running.add(pool.submit(one_seed, library, kind, seed))
                seed += 1
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done += future.result().weights
                yield future.result()


def one_seed(library: kernels.Library, kind: int, seed: int) -> Found:
    """Compare what one seed gives."""
    name, weights, size = kernels.TYPES[kind]
    random = np.random.default_rng(seed)
    columns = 256 * int(random.integers(1, 17))
    values = hard_rows(seed, columns)
    if seed % 3 == 0:
        with np.errstate(over="ignore", under="ignore", invalid="ignore"):
            values = values * (np.float32(10) ** np.float32(random.uniform(-20, 20)))
    rows: kernels.Rows = kernels.to_bf16(values) if seed // 2 % 2 else values
    importance = importance_for(seed, columns) if seed % 2 else None
    expected, out = (np.empty(rows.size // weights * size, np.uint8) for _ in range(2))
    kernels.quantize_with_ggml(kind, rows, expected, importance)
    referred, wrong = 0, []
    for level in range(library.level + 1):
        referred += kernels.quantize(library, level, kind, rows, out, importance)
        differ = np.flatnonzero((out != expected).reshape(-1, size).any(1))
        if differ.size:
            wrong.append(f"{name}, {kernels.LEVELS[level]}, seed {seed}: {differ.size} blocks, the first {differ[0]}")
    return Found(rows.size, referred, (library.level + 1) * (rows.size // weights), wrong)


if __name__ == "__main__":
    main()
