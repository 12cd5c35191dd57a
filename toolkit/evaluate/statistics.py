"""Means and differences with 95 % intervals by bootstrap over rows, and p-values corrected for their number."""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.bootstrap import expanded_tail

SURE = 0.05  # p-value, after correction, from which on no difference can be shown
NONE = "no difference can be shown"
LEAST, MOST, WORK = 9_999, 99_999, 20_000_000  # resamples, and numbers that are drawn for one of them at most

Values = npt.NDArray[np.float64]


def mean_of(values: Sequence[float], *, share: bool = False) -> dict[str, Any]:
    """Return mean, 95 % interval (`low`, `high`, both null for fewer than two values) and `n`.

    Of a `share`, whose values are all 0 or 1, the interval is Wilson's: resampling 50 of 50 says nothing of its width.
    """
    found = np.asarray(values, dtype=np.float64)
    if not len(found):
        return {"mean": None, "low": None, "high": None, "n": 0}
    low, high = _share(found) if share and set(found.tolist()) <= {0.0, 1.0} else _interval(found)
    return {"mean": float(found.mean()), "low": low, "high": high, "n": len(found)}


def compare(measure: str, a: str, b: str, first: Sequence[float], second: Sequence[float], *, less: bool) -> Any:
    """Return a comparison: `difference` is b minus a, in pairs, with its interval and p-value, not yet corrected.

    With `less` the smaller mean is the better one; `verdict` is about b against a. Rows in which either is missing
    (NaN) do not count.
    """
    differences = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    differences = differences[np.isfinite(differences)]
    low, high = _interval(differences)
    return {
        "measure": measure,
        "a": a,
        "b": b,
        "difference": float(differences.mean()) if len(differences) else None,
        "low": low,
        "high": high,
        "p": p_value(differences),
        "p_corrected": None,
        "n": len(differences),
        "less_is_better": less,
        "verdict": NONE,
    }


def correct(comparisons: Sequence[dict[str, Any]]) -> None:
    """Correct the p-values of all comparisons together, by Holm's step-down method, and write their verdicts.

    Holm, S. (1979), A simple sequentially rejective multiple test procedure. Scand. J. Statist. 6, 65-70.
    """
    highest = 0.0
    for rank, one in enumerate(sorted(comparisons, key=lambda one: one["p"])):
        highest = max(highest, min(1.0, (len(comparisons) - rank) * one["p"]))
        one["p_corrected"] = highest
        shown = highest < SURE and one["difference"]
        better = (one["difference"] or 0) < 0 if one["less_is_better"] else (one["difference"] or 0) > 0
        one["verdict"] = ("better" if better else "worse") if shown else NONE


def p_value(differences: Values) -> float:
    """Return the two-sided p-value of a mean difference of zero: the level at which the expanded interval reaches it.

    It is never less than 2^(1-n), that of n differences with one sign: a bootstrap of a few rows knows no better.
    """
    from scipy.stats import norm, t

    count = len(differences)
    if count < 2 or not differences.any():
        return 1.0
    means = _means(differences)
    beyond = min(int((means <= 0).sum()), int((means >= 0).sum()))
    tail = (beyond + 1) / (len(means) + 1)
    if tail >= 0.5:
        return 1.0
    place = norm.ppf(tail)
    if not beyond:  # further out than resamples can count: as far as their spread says
        spread = means.std() if np.ptp(differences) else 0.0  # of equal means it is not 0 in floating point
        place = min(place, -abs(means.mean()) / spread) if spread else -math.inf
    return float(max(2 * t.cdf(place * math.sqrt((count - 1) / count), count - 1), 2.0 ** (1 - count)))


def _interval(values: Values) -> tuple[float | None, float | None]:
    from scipy.stats import bootstrap

    if len(values) < 2:
        return None, None
    if np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = bootstrap(
            (values,),
            np.mean,
            confidence_level=1 - 2 * expanded_tail(len(values), 1 - SURE),
            n_resamples=_resamples(len(values)),
            batch=max(1, WORK // (4 * len(values))),
            vectorized=True,
            method="percentile",
            rng=np.random.default_rng(0),
        ).confidence_interval
    return float(found.low), float(found.high)


def _means(values: Values) -> Values:
    """Return the means of resamples of the values; the same each time."""
    rng, count = np.random.default_rng(0), _resamples(len(values))
    step = max(1, WORK // (4 * len(values)))
    parts = [
        values[rng.integers(0, len(values), (min(step, count - start), len(values)))].mean(axis=1)
        for start in range(0, count, step)
    ]
    return np.concatenate(parts)


def _resamples(rows: int) -> int:
    return max(LEAST, min(MOST, WORK // rows))


def _share(values: Values) -> tuple[float | None, float | None]:
    from scipy.stats import binomtest

    if len(values) < 2:
        return None, None
    found = binomtest(int(values.sum()), len(values)).proportion_ci(method="wilson")
    return float(found.low), float(found.high)
