"""Rows that are hard to quantize, made from a seed: a kernel must get every bit right."""

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


def hard_rows(seed: int, columns: int) -> Floats:
    """Return one row of every family below, shape (families, columns), float32; NaN and infinity among them."""
    random = np.random.default_rng(seed)

    def normal(scale: float = 1.0) -> Floats:
        return random.standard_normal(columns, np.float32) * np.float32(scale)

    def signs() -> Floats:
        return random.choice(np.array([-1, 1], np.float32), columns)

    def groups(low: float, high: float, size: int) -> Floats:
        scales = np.float32(10) ** random.uniform(low, high, -(-columns // size)).astype(np.float32)
        return normal() * np.repeat(scales, size)[:columns]

    def rarely(share: float, usual: Floats, other: Floats) -> Floats:
        return np.where(random.random(columns) < share, other, usual)

    zeros = np.zeros(columns, np.float32)
    steps = np.arange(columns, dtype=np.float32)
    anything = random.integers(0, 2**32, columns, np.uint32).view(np.float32)
    finite = np.where(np.isfinite(anything), anything, np.float32(1))
    fp4 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6], np.float32)
    uneven = np.array([-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113], np.float32)
    # IQ4's own values, and where `importance_for` is zero the middles between them: ties of its nearest value
    levels = np.where(steps % 32 == 31, uneven[0], random.choice(uneven, columns))
    middle = slice(columns // 3, columns // 3 + 40)
    levels[middle] = random.choice((uneven[1:] + uneven[:-1]) / 2, levels[middle].size)
    # what weighs nothing far below the rest, which is as good as flat: the line that is fitted may end above all values
    far = np.where(importance_for(seed, columns) == 0, np.float32(-1000), -1 - random.random(columns) / 2)
    near = np.nextafter(np.float32(0.7), np.float32(2) * signs())
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rows = [
            normal(0.02), (random.standard_t(5, columns) * 0.02).astype(np.float32), groups(-4, 0, 32),
            groups(-3, 3, 16), random.standard_cauchy(columns).astype(np.float32),
            random.uniform(-1, 1, columns).astype(np.float32),
            # signs and offsets
            np.abs(normal()), -np.abs(normal()), normal(0.1) + 3, normal(0.1) - 3, normal(1e-6) + 1, signs(),
            signs() * np.float32(0.3), (-1) ** (steps % 2), np.where(steps % 32 < 16, 1, -1) * np.abs(normal()),
            # ties and grids
            random.integers(-8, 9, columns) / 2, random.integers(-64, 65, columns) / 4,
            random.integers(-1, 2, columns) * 0.05, random.choice(fp4, columns) * signs(),
            random.integers(-127, 128, columns) / 127, np.trunc(normal(3)), steps,
            random.integers(0, 16, columns) * 1.0, random.integers(0, 32, columns) - 16.0, levels,
            # zeros, constants, hardly anything
            zeros, -zeros, rarely(0.5, zeros, -zeros), zeros + 0.1, zeros - 0.1, near, rarely(0.01, zeros, normal()),
            rarely(0.9, normal(), zeros), np.repeat(random.random(-(-columns // 32)) < 0.5, 32)[:columns] * normal(),
            np.repeat(random.random(-(-columns // 16)) < 0.5, 16)[:columns] * normal(),
            # outliers
            rarely(0.004, zeros, zeros + 5), rarely(0.004, normal(0.01), normal(10)),
            rarely(0.004, normal(1e-8), normal(1)), rarely(0.004, normal(), -zeros), groups(-8, 2, 32),
            groups(-12, 6, 256), far,
            # small, smaller, denormal
            normal(1e-6), normal(1e-9), normal(1e-15), normal(1e-20), normal(1e-30), normal(1e-38), zeros + 1e-40,
            normal(1e-40), rarely(0.5, normal(1e-44), normal()), groups(-45, -35, 32),
            # large, larger, too large
            normal(100), normal(6e4), normal(1e6), normal(1e12), normal(1e18), normal(1e20), normal(1e37),
            groups(30, 38, 32), groups(-38, 38, 16), rarely(0.004, normal(0.02), zeros + 3e38), finite,
            # not numbers
            rarely(0.01, normal(), zeros + np.inf), rarely(0.01, normal(), zeros - np.inf),
            rarely(0.01, normal(), zeros + np.nan), anything,
        ]  # fmt: skip
        return np.stack(rows).astype(np.float32)


def importance_for(seed: int, columns: int) -> Floats:
    """Return an importance per column, float32 from 0 up: uneven, with stretches of zeros and of equal values."""
    random = np.random.default_rng(seed)
    values = (random.random(columns) ** 8 * 100).astype(np.float32)
    values[random.random(columns) < 0.05] = 0
    values[columns // 3 : columns // 3 + 40] = 0
    values[columns // 2 : columns // 2 + 70] = 1
    return values
