import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from tests.support.properties import tries
from toolkit.core.bootstrap import expanded_tail
from toolkit.validate import metrics
from toolkit.validate.metrics import (
    KL_EDGES,
    compare,
    kl_histogram,
    mean_interval,
    negative_log_likelihood,
    penalised,
    perplexity,
)


def logits_of(*rows: list[float]) -> np.ndarray:
    """Logits whose softmax is exactly proportional to the given weights."""
    return np.log(np.array(rows, dtype=np.float64)).astype(np.float32)


def targets_of(*ids: int) -> np.ndarray:
    return np.array(ids, dtype=np.int64)


def test_closed_form_of_two_coins() -> None:
    found = compare(logits_of([1, 1], [3, 1]), logits_of([3, 1], [1, 3]), targets_of(0, 1))
    fair = 0.5 * math.log(0.5 / 0.75) + 0.5 * math.log(0.5 / 0.25)
    swapped = 0.75 * math.log(3) + 0.25 * math.log(1 / 3)
    assert found.kl == pytest.approx([fair, swapped], rel=1e-6)
    assert found.nll == pytest.approx([-math.log(0.75), -math.log(0.75)], rel=1e-6)
    assert found.same_top.tolist() == [True, False]  # [1, 1] and [3, 1] both have their first maximum at 0


def test_perplexity_of_a_uniform_guess_is_the_vocabulary() -> None:
    nll = negative_log_likelihood(np.full((5, 1000), 7.5, dtype=np.float32), targets_of(0, 1, 2, 3, 999))
    assert perplexity(nll) == pytest.approx(1000, rel=1e-12)


def test_perplexity_weighs_tokens_not_rows() -> None:
    assert perplexity(np.array([0.0, 0.0, math.log(8)])) == pytest.approx(2.0)


def test_the_interval_of_a_mean_is_scipys_bootstrap_over_rows() -> None:
    from scipy.stats import bootstrap

    draw = np.random.default_rng(1)
    counts = draw.integers(5, 60, 40)
    totals = draw.gamma(2.0, 0.05, 40) * counts
    low, high = mean_interval(totals, counts) or (0.0, 0.0)
    expected = bootstrap(
        (totals, counts), lambda total, count, axis: total.sum(axis) / count.sum(axis), paired=True,
        confidence_level=1 - 2 * expanded_tail(40), n_resamples=20_000, method="percentile",
        rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert (low, high) == pytest.approx((expected.low, expected.high), rel=0.02)
    assert low < totals.sum() / counts.sum() < high
    assert mean_interval(totals, counts) == (low, high)  # the same resamples every time


@pytest.mark.slow
def test_the_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    held = 0
    for seed in range(200):
        draw = np.random.default_rng(seed)
        counts = draw.integers(20, 60, 40)
        low, high = mean_interval(draw.gamma(2.0, 0.5, 40) * counts, counts) or (0.0, 0.0)
        held += low <= 1.0 <= high
    assert 0.88 <= held / 200 <= 0.99


@pytest.mark.slow
def test_of_ten_rows_the_interval_is_as_wide_as_it_must_be() -> None:
    """Plain percentiles hold the true mean 90 times of 100."""
    held = 0
    for seed in range(400):
        values = np.random.default_rng(seed).normal(1.0, 0.2, 10)
        low, high = mean_interval(values, np.ones(10, np.int64)) or (0.0, 0.0)
        held += low <= 1.0 <= high
    assert 0.93 <= held / 400 <= 0.98


@pytest.mark.parametrize("totals", [[], [1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_there_is_no_interval_of_one_row_or_of_what_is_not_finite(totals: list[float]) -> None:
    assert mean_interval(np.array(totals), np.ones(len(totals), np.int64)) is None


@pytest.mark.parametrize("vocabulary", [3, 1000, 50_000])
def test_equals_torch_in_float64(vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    p = (random.standard_normal((40, vocabulary)) * 6).astype(np.float32)
    q = p + (random.standard_normal(p.shape) * 0.1).astype(np.float32)
    targets = random.integers(0, vocabulary, 40)
    found = compare(p, q, targets)
    log_p, log_q = (torch.from_numpy(x).double().log_softmax(dim=1) for x in (p, q))
    kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1)
    nll = torch.nn.functional.cross_entropy(torch.from_numpy(q).double(), torch.from_numpy(targets), reduction="none")
    assert np.allclose(found.kl, kl.numpy(), rtol=1e-11, atol=1e-13)
    assert np.allclose(found.nll, nll.numpy(), rtol=1e-13)
    assert np.allclose(negative_log_likelihood(q, targets), nll.numpy(), rtol=1e-13)


def test_chunks_do_not_change_a_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    random = np.random.default_rng(0)
    p, q = (random.standard_normal((23, 70)).astype(np.float32) for _ in range(2))
    targets = random.integers(0, 70, 23)
    whole = compare(p, q, targets)
    monkeypatch.setattr(metrics, "CHUNK", 5 * 70)
    parts = compare(p, q, targets)
    assert np.array_equal(whole.kl, parts.kl)
    assert np.array_equal(whole.nll, parts.nll)
    assert np.array_equal(whole.same_top, parts.same_top)


def test_large_logits_neither_overflow_nor_lose_the_difference() -> None:
    small = logits_of([1, 1, 2], [5, 1, 1])
    shifted = small + np.float32(4096)  # exp(4096) is infinite in every float
    assert compare(small, small + np.float32(0.5), targets_of(0, 1)).kl == pytest.approx([0, 0], abs=1e-7)
    assert negative_log_likelihood(shifted, targets_of(0, 0)) == pytest.approx([math.log(4), math.log(7 / 5)], rel=1e-3)


def test_tiny_distances_are_resolved() -> None:
    """A shift of one logit by e changes KL by p(1-p)e²/2: 5e-11 here, lost if log-probabilities were float32."""
    p = np.zeros((1, 2), dtype=np.float32)
    q = np.array([[2e-5, 0.0]], dtype=np.float32)
    assert compare(p, q, targets_of(0)).kl[0] == pytest.approx(0.25 * (2e-5) ** 2 / 2, rel=1e-4)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", [0, 1])
def test_a_logit_that_is_not_finite_gives_nan_in_its_row_only(bad: float, side: int) -> None:
    pair = [np.zeros((3, 4), dtype=np.float32), np.ones((3, 4), dtype=np.float32)]
    pair[0][:, 2] = -800  # its probability underflows to zero: the bad one must show even there
    pair[side][1, 2] = bad
    found = compare(pair[0], pair[1], targets_of(0, 0, 0))
    assert np.isnan(found.kl).tolist() == [False, True, False]
    assert np.isnan(negative_log_likelihood(pair[side], targets_of(0, 0, 0))).tolist() == [False, True, False]


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.zeros((2, 3), dtype=np.float32), np.zeros((2, 4), dtype=np.float32), targets_of(0, 0))
    with pytest.raises(ValueError, match="shapes differ"):
        compare(np.zeros((2, 3), dtype=np.float32), np.zeros((2, 3), dtype=np.float32), targets_of(0))


some_logits = arrays(np.float32, (4, 9), elements=st.floats(-200, 200, width=32))


@settings(max_examples=tries(200), deadline=None)
@given(some_logits, some_logits)
def test_kl_is_never_negative_and_zero_for_equals(p: np.ndarray, q: np.ndarray) -> None:
    targets = targets_of(0, 1, 2, 8)
    assert (compare(p, q, targets).kl >= 0).all()
    same = compare(p, p.copy(), targets)
    assert (same.kl == 0).all()
    assert same.same_top.all()
    assert (same.nll >= 0).all()


@settings(max_examples=tries(100), deadline=None)
@given(some_logits, st.floats(-50, 50, width=32))
def test_a_constant_on_all_logits_means_nothing(p: np.ndarray, constant: float) -> None:
    shifted = p + np.float32(constant)
    # float32 rounds p + constant: by 2**-16 at most for values below 256.
    assert (compare(p, shifted, targets_of(0, 1, 2, 3)).kl < 1e-8).all()


@pytest.mark.parametrize("penalty", [1.1, 1.5, 0.7])
def test_a_repeat_penalty_is_what_llama_cpps_own_sampler_does(penalty: float) -> None:
    import ctypes

    import llama_cpp

    random = np.random.default_rng(3)
    vocabulary, first = 300, 20
    logits = random.normal(0, 4, (90, vocabulary)).astype(np.float32)
    seen = [int(token) for token in random.integers(0, 120, first + 90)]
    found = penalised(logits, seen, first, penalty)
    for index in (0, 1, 50, 89):
        sampler = llama_cpp.llama_sampler_init_penalties(vocabulary, 64, penalty, 0.0, 0.0)
        for token in seen[: first + index + 1]:
            llama_cpp.llama_sampler_accept(sampler, token)
        data = (llama_cpp.llama_token_data * vocabulary)()
        for token in range(vocabulary):
            data[token].id, data[token].logit = token, float(logits[index, token])
        array = llama_cpp.llama_token_data_array(data=data, size=vocabulary, selected=-1, sorted=False)
        llama_cpp.llama_sampler_apply(sampler, ctypes.byref(array))
        theirs = {array.data[place].id: array.data[place].logit for place in range(vocabulary)}
        llama_cpp.llama_sampler_free(sampler)
        assert np.allclose(found[index], [theirs[token] for token in range(vocabulary)], rtol=1e-6)
    assert (found != logits).any() and (penalised(logits, seen, first, 1.0) == logits).all()


def test_the_histogram_counts_every_token_once_and_as_numpy_does() -> None:
    kl = np.random.default_rng(3).lognormal(-6, 4, 5000)
    counts = kl_histogram(kl)
    within, _ = np.histogram(kl, [0, *KL_EDGES, np.inf])  # numpy's last bin alone holds its right edge
    assert counts == within.tolist() and sum(counts) == len(kl) and all(counts)


def test_the_histogram_puts_zero_first_an_edge_above_itself_and_all_beyond_the_last_edge_last() -> None:
    kl = np.array([0.0, KL_EDGES[0], KL_EDGES[5], KL_EDGES[-1], 1e9])
    assert [index for index, count in enumerate(kl_histogram(kl)) for _ in range(count)] == [0, 1, 6, 29, 29]
    assert kl_histogram(np.empty(0)) == [0] * (len(KL_EDGES) + 1)
