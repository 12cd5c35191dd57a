"""Rows that show any quantizer which rounds in another way or order than ggml: its bytes differ."""

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]

COLUMNS = 512


def ordinary_rows(count: int, seed: int = 1) -> Floats:
    """Return (count, COLUMNS) as trained weights are: heavy-tailed, half of the rows on bfloat16's grid."""
    rows = (np.random.default_rng(seed).standard_t(5, (count, COLUMNS)) * 0.02).astype(np.float32)
    rows[::2] = on_bfloat16_grid(rows[::2])
    return rows


def hard_rows(seed: int = 2) -> Floats:
    """Return some 50 finite rows: zeros and constants, ties, extremes of every size, denormals, outliers, patterns."""
    rng = np.random.default_rng(seed)
    normal = rng.standard_normal((40, COLUMNS)).astype(np.float32)
    column = np.arange(COLUMNS)
    block = column // 16
    one = np.ones(COLUMNS, np.float32)
    rows: list[npt.NDArray[Any]] = [0 * one, -0.0 * one]
    rows += [one * value for value in (1, -1, 0.3, -0.7, 1e-30, 6e4, -3e-5)]
    rows += [normal[i] * scale for i, scale in enumerate((1e-7, 1e-12, 1e-15, 1e-20, 1e-30, 1e-36, 1e-40, 1e-44))]
    rows += [normal[8 + i] * scale for i, scale in enumerate((1e4, 1e6, 1e7, 1e10, 1e15, 1e18, 1e20, 1e37))]
    rows += [np.where(column % period == 7, 100.0, base) for period in (512, 256, 32) for base in (0 * one, normal[16])]
    rows += [rng.standard_cauchy(COLUMNS), on_bfloat16_grid(rng.standard_cauchy(COLUMNS).astype(np.float32))]
    rows += [np.where(column % 2, 0.5, -0.5), np.where(rng.random(COLUMNS) < 0.5, 1, -1) * 0.3 * one]
    rows += [-np.abs(normal[17]), np.abs(normal[18]), normal[19] + 100, normal[20] * 0.001 - 1, normal[21] + 1e6]
    rows += [1 + np.ldexp(rng.integers(0, 9, COLUMNS), -23), -1 - np.ldexp(rng.integers(0, 9, COLUMNS), -24)]
    rows += [rng.integers(-16, 17, COLUMNS), rng.integers(-31, 33, COLUMNS) * 0.5, rng.integers(0, 16, COLUMNS) - 7.5]
    rows += [rng.choice([-6, -4, -3, -2, -1.5, -1, -0.5, 0, 0.5, 1, 1.5, 2, 3, 4, 6], COLUMNS)]
    rows += [rng.integers(-1, 2, COLUMNS) * 0.02, np.where(rng.random(COLUMNS) < 0.02, normal[22], 0)]
    rows += [normal[23] * 10.0 ** (block % 13 - 6), normal[24] * 10.0 ** (block % 31 - 20), normal[25] * (block % 3)]
    rows += [np.ldexp(normal[26], rng.integers(-60, 60, COLUMNS)), column - 255.5, column / 7, (column % 37) / 36]
    rows += [np.where(column % 16 == 3, -1, 1) * normal[27], np.where(column < 256, 0, normal[28]), one * 1e-3]
    with np.errstate(under="ignore", over="ignore"):
        return np.stack([np.asarray(row, np.float32) for row in rows])


def hostile_rows(seed: int = 3) -> Floats:
    """Return rows that no checked weights hold: infinities, NaN, and random bits."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((8, COLUMNS)).astype(np.float32)
    rows[0, 5] = np.inf
    rows[1, 300] = -np.inf
    rows[2, [6, 270]] = np.nan
    rows[3, 40:72] = np.inf
    rows[4] = np.nan
    rows[5:] = rng.integers(0, 1 << 32, (3, COLUMNS), np.uint32).view(np.float32)
    return rows


def importance_row(seed: int = 4) -> Floats:
    """Return (COLUMNS,) of mean squares, some of them zero."""
    rng = np.random.default_rng(seed)
    return (rng.random(COLUMNS) ** 6 * (rng.random(COLUMNS) > 0.05)).astype(np.float32)


def on_bfloat16_grid(rows: Floats) -> Floats:
    """Return float32 cut to what bfloat16 holds."""
    return (np.ascontiguousarray(rows, np.float32).view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
