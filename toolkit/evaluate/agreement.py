"""How certain a preference is, and how far the raters agree."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from toolkit.evaluate.statistics import NONE, SURE

# Landis and Koch, The Measurement of Observer Agreement for Categorical Data, Biometrics 33 (1977), page 165.
_STRENGTHS = ((0.2, "slight"), (0.4, "fair"), (0.6, "moderate"), (0.8, "substantial"))


def win_rate(better: int, worse: int, *, pairs: int = 1) -> dict[str, Any]:
    """Return how often `b` is preferred among decided questions, with the exact sign test; ties are left out.

    `win_rate`, `low` and `high` are shares: the interval is Clopper and Pearson's of 95 %. `p` is two-sided, and
    `p_corrected` Bonferroni's for so many `pairs`. All are None where nothing is decided. `verdict` is about `b`.
    """
    from scipy.stats import binomtest

    if better + worse == 0:
        empty = dict.fromkeys(("win_rate", "low", "high", "p", "p_corrected"))
        return {**empty, "verdict": NONE}
    test = binomtest(better, better + worse, 0.5)
    interval = test.proportion_ci(confidence_level=0.95, method="exact")
    corrected = min(1.0, float(test.pvalue) * pairs)
    verdict = NONE if corrected >= SURE else "better" if better > worse else "worse"
    return {
        "win_rate": better / (better + worse),
        "low": float(interval.low),
        "high": float(interval.high),
        "p": float(test.pvalue),
        "p_corrected": corrected,
        "verdict": verdict,
    }


def cohen_kappa(first: Sequence[str], second: Sequence[str]) -> float | None:
    """Return Cohen's kappa of two raters on the same items; None where chance alone would explain all, or no items."""
    from sklearn.metrics import cohen_kappa_score

    # Where both use one word alone, chance agreement is 1 and the formula divides by zero.
    if len({*first, *second}) < 2:
        return None
    return float(cohen_kappa_score(first, second))


def fleiss_kappa(items: Sequence[Sequence[str]]) -> float | None:
    """Return Fleiss' kappa; each item holds the votes of all raters, equally many. None as in `cohen_kappa`.

    Fleiss, Measuring nominal scale agreement among many raters, Psychological Bulletin 76 (1971), pages 378 to 382.
    """
    total: Counter[str] = Counter()
    agreeing = 0.0
    for votes in items:
        counts = Counter(votes)
        agreeing += sum(count * (count - 1) for count in counts.values()) / (len(votes) * (len(votes) - 1))
        total += counts
    if len(total) < 2:
        return None
    observed = agreeing / len(items)
    expected = sum((count / total.total()) ** 2 for count in total.values())
    return (observed - expected) / (1 - expected)


def rater_agreement(verdicts: Mapping[str, Mapping[int, str]]) -> dict[str, Any]:
    """Return how far raters agree on the items that all of them voted on.

    `verdicts` is rater → item → verdict. `observed` is the share of equal votes among all pairs of raters.
    """
    raters = len(verdicts)
    common = sorted(set.intersection(*(set(votes) for votes in verdicts.values()))) if verdicts else []
    found: dict[str, Any] = {"raters": raters, "items": len(common), "observed": None, "kappa": None, "method": None}
    if raters < 2 or not common:
        return found
    table = [[votes[item] for votes in verdicts.values()] for item in common]
    equal = sum(sum(n * (n - 1) for n in Counter(row).values()) / (raters * (raters - 1)) for row in table)
    kappa = cohen_kappa(*zip(*table, strict=True)) if raters == 2 else fleiss_kappa(table)
    return {
        **found,
        "observed": equal / len(common),
        "kappa": kappa,
        "method": None if kappa is None else "Cohen" if raters == 2 else "Fleiss",
    }


def strength(kappa: float) -> str:
    """Return the usual word for a kappa, by Landis and Koch."""
    if kappa < 0:
        return "poor"
    return next((word for bound, word in _STRENGTHS if kappa <= bound), "almost perfect")
