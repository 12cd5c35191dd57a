"""How far a quantized model is from the trained one, token by token: float64 arithmetic on float32 logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from toolkit.core.bootstrap import expanded_tail

Logits = npt.NDArray[np.float32]
Values = npt.NDArray[np.float64]

PENALISED = 64  # tokens that a repeat penalty looks back over, by default in Ollama and in llama-cpp-python
RESAMPLES = 10_000  # of the rows, for an interval
CHUNK = 2**20  # logits held in float64 at a time: 8 MiB an array
KL_EDGES = tuple(float(f"{10 ** (step / 4):.4g}") for step in range(-24, 5))  # nats: 1e-6 to 10, four in each decade


@dataclass(frozen=True)
class Distance:
    """Per answer token, arrays of shape (tokens,): KL divergence and NLL in nats, and whether the top tokens agree."""

    kl: Values
    nll: Values
    same_top: npt.NDArray[np.bool_]


def compare(reference: Logits, candidate: Logits, targets: npt.NDArray[np.int64]) -> Distance:
    """Compare two models' logits of shape (tokens, vocabulary) at the tokens `targets`, shape (tokens,).

    KL(reference || candidate) = sum p (log p - log q), over the whole vocabulary (Kullback and Leibler 1951); `nll` is
    the candidate's -log q(target). NaN if a logit is not finite. Raises ValueError if the shapes differ.
    """
    if reference.shape != candidate.shape or targets.shape != reference.shape[:1]:
        raise ValueError(f"shapes differ: {reference.shape}, {candidate.shape}, {targets.shape}")
    parts = []
    for rows in _chunks(reference.shape):
        log_p, p = _log_softmax(reference[rows])
        log_q, _ = _log_softmax(candidate[rows])
        nll = -log_q[np.arange(len(log_q)), targets[rows]]
        with np.errstate(invalid="ignore"):
            log_p -= log_q
            kl = np.einsum("ij,ij->i", p, log_p)
        kl = np.maximum(kl, 0.0)  # rounding alone takes it below zero, by 1e-16; NaN stays NaN
        parts.append(Distance(kl, nll, reference[rows].argmax(axis=1) == candidate[rows].argmax(axis=1)))
    return join(parts)


def penalised(logits: Logits, seen: Sequence[int], first: int, penalty: float) -> Logits:
    """Return a copy of logits after a repeat penalty: tokens among the last 64 are made less likely.

    `logits` has shape (tokens, vocabulary): the row at i follows `seen[: first + i + 1]`. As llama.cpp's sampler does
    (src/llama-sampler.cpp, penalties), a positive logit is divided by the penalty, any other is multiplied.
    """
    changed = logits.copy()
    for index, row in enumerate(changed):
        end = first + index + 1
        recent = np.unique(np.array(seen[max(0, end - PENALISED) : end], dtype=np.int64))
        values = row[recent]
        row[recent] = np.where(values > 0, values / penalty, values * penalty)
    return changed


def join(parts: list[Distance]) -> Distance:
    """Concatenate the tokens of several comparisons."""
    return Distance(
        np.concatenate([np.empty(0), *(part.kl for part in parts)]),
        np.concatenate([np.empty(0), *(part.nll for part in parts)]),
        np.concatenate([np.empty(0, dtype=np.bool_), *(part.same_top for part in parts)]),
    )


def mean_interval(totals: Values, counts: npt.NDArray[np.int64]) -> tuple[float, float] | None:
    """Return the 95 % interval of a mean over tokens, from the total and the number of tokens of each row.

    The bootstrap over rows, because a row's tokens are no independent draws (Efron 1979; 10,000 resamples, always the
    same ones), as wide as few rows need. None for fewer than two rows, or values that are not finite.
    """
    if len(totals) < 2 or not np.isfinite(totals).all():
        return None
    draw = np.random.default_rng(0)
    means = []
    for _ in range(RESAMPLES // 100):  # 100 at a time: their counts of all rows are in memory
        times = draw.multinomial(len(totals), np.full(len(totals), 1 / len(totals)), size=100)
        means.append(times @ totals / (times @ counts))
    tail = 100 * expanded_tail(len(totals))
    low, high = np.percentile(np.concatenate(means), [tail, 100 - tail])
    return float(low), float(high)


def kl_histogram(kl: Values) -> list[int]:
    """Count the tokens between each two of KL_EDGES; the first count is of those below all, the last of those above.

    A token at an edge counts above it. The values must be finite.
    """
    counts = np.bincount(np.searchsorted(KL_EDGES, kl, side="right"), minlength=len(KL_EDGES) + 1)
    return [int(count) for count in counts]


def negative_log_likelihood(logits: Logits, targets: npt.NDArray[np.int64]) -> Values:
    """Return -log p(target) in nats for logits of shape (tokens, vocabulary); NaN if a logit is not finite."""
    found = np.empty(len(logits))
    for rows in _chunks(logits.shape):
        log_p, _ = _log_softmax(logits[rows])
        found[rows] = -log_p[np.arange(len(log_p)), targets[rows]]
    return found


def perplexity(nll: Values) -> float:
    """Return exp(mean NLL), every token with the same weight."""
    return math.exp(float(nll.mean()))


def _log_softmax(logits: Logits) -> tuple[Values, Values]:
    """Return log p and p in float64; the maximum is subtracted first, so that nothing overflows."""
    log_p = logits.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        log_p -= log_p.max(axis=1, keepdims=True)
        p = np.exp(log_p)
        total = p.sum(axis=1, keepdims=True)
        p /= total
        log_p -= np.log(total)
    broken = ~np.isfinite(logits).all(axis=1)
    log_p[broken] = np.nan  # a single -inf would otherwise pass where p is zero
    return log_p, p


def _chunks(shape: tuple[int, ...]) -> list[slice]:
    step = max(1, CHUNK // max(1, shape[1]))
    return [slice(start, min(start + step, shape[0])) for start in range(0, shape[0], step)]
