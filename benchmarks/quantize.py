"""How fast the kernels quantize, as ratios to libggml on the same threads in the same run.

    python benchmarks/quantize.py [--rows 1024] [--types Q4_K,Q6_K] [--rounds 5]

Rows of 4096 weights, Student-t(5) * 0.02 rounded to bfloat16, given to libggml and to the kernels as float32 (and to
the kernels as bfloat16), split over threads. The best of the rounds, libggml and every instruction set of this machine
taking turns. Mweights/s, and times libggml in brackets, from the threads' own CPU time: what else the machine does
counts as little as it can.
"""

import argparse
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit import kernels
from toolkit.core.hardware import cores

COLUMNS, SLAB = 4096, 64  # rows that a thread takes at once


def main() -> None:
    """Measure every type, plain and with importance, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--types", default=",".join(name for name, _, _ in kernels.TYPES.values()))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=cores())
    arguments = parser.parse_args()
    library = kernels.opened()
    if library is None:
        sys.exit("the kernels are not compiled: python setup.py build_ext --inplace")
    values = (np.random.default_rng(0).standard_t(5, (arguments.rows, COLUMNS)) * 0.02).astype(np.float32)
    narrow = kernels.to_bf16(values)
    values = kernels.widened(narrow)
    importance = np.abs(np.random.default_rng(1).standard_normal(COLUMNS, np.float32)) + np.float32(0.01)
    levels = list(range(library.level + 1))
    print(f"{machine()}, {arguments.threads} threads, {arguments.rows} x {COLUMNS}, best of {arguments.rounds}")
    titles = ["libggml", *(kernels.LEVELS[level] for level in levels), f"{kernels.LEVELS[levels[-1]]}, bfloat16"]
    print(f"{'':<16}" + "".join(f"{title:>24}" for title in titles))
    numbers = {name: kind for kind, (name, _, _) in kernels.TYPES.items()}
    with ThreadPoolExecutor(arguments.threads) as pool:
        for name in arguments.types.split(","):
            for weights in (None, importance):
                ways = [ggml(numbers[name], values, weights)]
                ways += [kernel(library, level, numbers[name], values, weights) for level in levels]
                ways += [kernel(library, levels[-1], numbers[name], narrow, weights)]
                speeds = measure(ways, arguments.rows, pool, arguments.threads, arguments.rounds)
                cells = [f"{speeds[0]:.1f}"] + [f"{speed:,.0f} ({speed / speeds[0]:.1f} x)" for speed in speeds[1:]]
                label = name + (" imatrix" if weights is not None else "")
                print(f"{label:<16}" + "".join(f"{cell:>24}" for cell in cells), flush=True)


Way = Callable[[int, int], object]


def ggml(kind: int, rows: kernels.Rows, importance: kernels.Floats | None) -> Way:
    """Quantize rows from one number to another with libggml."""
    out, size = room(kind, rows)
    return lambda start, end: kernels.quantize_with_ggml(
        kind, rows[start:end], out[start * size : end * size], importance
    )


def kernel(
    library: kernels.Library, level: int, kind: int, rows: kernels.Rows, importance: kernels.Floats | None
) -> Way:
    """Quantize rows from one number to another with the kernels."""
    out, size = room(kind, rows)
    return lambda start, end: kernels.quantize(
        library, level, kind, rows[start:end], out[start * size : end * size], importance
    )


def room(kind: int, rows: kernels.Rows) -> tuple[kernels.Bytes, int]:
    """Return room for the results, touched once, and the bytes of a row."""
    _, weights, size = kernels.TYPES[kind]
    row = rows.shape[1] // weights * size
    return np.ones(len(rows) * row, np.uint8), row


def measure(ways: list[Way], rows: int, pool: ThreadPoolExecutor, threads: int, rounds: int) -> list[float]:
    """Return the best Mweights/s of each way, in turns; as many rows as take each about a tenth of a second at most."""
    started = time.perf_counter()
    ways[0](0, SLAB)
    few = max(4 * SLAB, min(rows, int(0.4 * SLAB / (time.perf_counter() - started)) // SLAB * SLAB))
    best = [0.0] * len(ways)
    for _ in range(rounds):
        for index, way in enumerate(ways):
            count = few if index == 0 else rows
            spent = sum(pool.map(lambda start, way=way: seconds(way, start), range(0, count, SLAB)))
            best[index] = max(best[index], count * COLUMNS * threads / spent / 1e6)
    return best


def seconds(way: Way, start: int) -> float:
    """Return the CPU time that a thread spends on a slab."""
    before = time.thread_time()
    way(start, start + SLAB)
    return time.thread_time() - before


def machine() -> str:
    """Name the CPU."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return "unknown CPU"
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    return f"{found.get('model name', 'unknown CPU')} (family {found.get('cpu family')}, model {found.get('model')})"


if __name__ == "__main__":
    main()
