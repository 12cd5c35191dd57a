"""Which records each step sees and how they are laid into micro-batches: sound for any lengths, and even."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.train import batches


@given(st.integers(1, 40), st.integers(1, 12), st.integers(1, 60), st.integers(0, 5))
def test_every_record_is_seen_once_an_epoch_and_steps_reach_over_epochs(
    count: int, per_step: int, steps: int, seed: int
) -> None:
    order = batches.step_records(count, per_step, steps, seed)
    assert order.shape == (steps, per_step)
    seen = order.reshape(-1)
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))
    begun = seen[len(seen) // count * count :]
    assert len(set(begun)) == len(begun)


def test_each_epoch_has_an_order_of_its_own_and_a_seed_repeats_it() -> None:
    first, second = batches.step_records(30, 30, 2, 3407).tolist()
    assert first != second
    assert batches.step_records(30, 30, 2, 3407).tolist() == [first, second]
    assert batches.step_records(30, 30, 2, 3408).tolist()[1] != second


def test_more_steps_or_smaller_ones_see_the_same_records_in_the_same_order() -> None:
    """So a run may go on with another plan."""
    order = batches.step_records(30, 8, 20, 3407).reshape(-1)
    assert (batches.step_records(30, 8, 7, 3407).reshape(-1) == order[:56]).all()
    assert (batches.step_records(30, 4, 40, 3407).reshape(-1) == order).all()


@st.composite
def steps_and_lengths(draw: st.DrawFn) -> tuple[batches.Rows, batches.Rows, int]:
    """Steps over records of any lengths, and into how many micro-batches they go."""
    lengths = np.array(draw(st.lists(st.integers(1, 300), min_size=1, max_size=40)))
    micro_batches, records = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    steps = batches.step_records(len(lengths), micro_batches * records, draw(st.integers(1, 5)), 1)
    return steps, lengths, micro_batches


@given(steps_and_lengths())
def test_a_layout_only_reorders_the_records_inside_a_step(case: tuple[batches.Rows, batches.Rows, int]) -> None:
    steps, lengths, micro_batches = case
    laid = batches.pack_steps(steps, lengths, micro_batches)
    assert laid.shape == (len(steps), micro_batches, steps.shape[1] // micro_batches)
    for step, layout in zip(steps, laid, strict=True):
        assert sorted(step) == sorted(layout.reshape(-1))
    assert (laid == batches.pack_steps(steps, lengths, micro_batches)).all()


@given(steps_and_lengths())
def test_micro_batches_part_by_the_longest_record_at_most(case: tuple[batches.Rows, batches.Rows, int]) -> None:
    steps, lengths, micro_batches = case
    for layout in lengths[batches.pack_steps(steps, lengths, micro_batches)]:
        tokens = layout.sum(axis=1)
        assert tokens.max() - tokens.min() <= layout.max()
        rounds = layout.T  # each deals a record to every micro-batch, the longest first
        assert all(above.min() >= below.max() for above, below in itertools.pairwise(rounds))


def test_rounds_go_forwards_and_backwards_in_turn() -> None:
    lengths = np.array([10, 80, 30, 60, 50, 40, 70, 20])
    laid = batches.pack_steps(np.arange(8)[None], lengths, 2)
    assert lengths[laid].tolist() == [[[80, 50, 40, 10], [70, 60, 30, 20]]]


@pytest.mark.parametrize("micro_batches", [2, 4])
def test_two_processes_have_about_equally_much_to_do(micro_batches: int) -> None:
    """64 records a step of lengths as MedQuAD's are: the slower one has 2 % more than the mean, undealt ones 8 %."""
    drawn = np.random.default_rng(5).lognormal(5.48, 0.84, 1983)
    lengths = np.clip(55 + drawn, 60, 2048).astype(np.int64)
    steps = batches.step_records(len(lengths), 64, 60, 3407)

    def excess(laid: batches.Rows) -> float:
        shares = np.stack([lengths[laid[:, process::2]].sum(axis=(1, 2)) for process in (0, 1)])
        return float((shares.max(axis=0) / shares.mean(axis=0)).mean()) - 1

    assert excess(batches.pack_steps(steps, lengths, micro_batches)) < 0.02
    assert excess(steps.reshape(60, micro_batches, -1)) > 0.04


def test_the_largest_micro_batch_is_the_one_with_most_tokens_padded_or_not() -> None:
    lengths = np.array([90, 10, 50, 40, 60, 60])
    laid = np.array([[[0, 1, 2], [3, 4, 5]]])
    assert batches.largest(laid, lengths) == 160
    assert batches.largest(laid, lengths, padded=True) == 270
    assert batches.largest(laid[:, 1:], lengths, padded=True) == 180


@pytest.mark.parametrize(("records", "micro_batch"), [(1, 8), (6, 4), (63, 8), (64, 8), (200, 8), (200, 4), (200, 1)])
def test_held_out_parts_do_not_depend_on_what_fits_into_memory(records: int, micro_batch: int) -> None:
    """The same parts with any micro-batch, so that losses before and after memory ran out can be compared."""
    tokens = [float(place % 7 + 1) for place in range(records)]

    def parts(most: int) -> list[list[float]]:
        size, together = batches.held_out_batch(records, most)
        assert 1 <= size <= most and size * together == max(1, records // batches.PARTS)
        cuts = [tokens[cut : cut + size] for cut in range(0, records, size)]
        copies = [[0.0, 0.0]] * 2
        return batches.held_out_parts([[2 * sum(cut), sum(cut)] for cut in cuts] + copies, records, most)

    found = parts(micro_batch)
    assert found == parts(1) and sum(count for _, count in found) == sum(tokens)
    assert len(found) >= min(records, batches.PARTS)
