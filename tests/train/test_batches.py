"""Which records a step sees and how they are packed: sound for any data, and the same losses packed or not."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.family_models import FAMILIES, save
from toolkit.train import attention, batches, loss, peft_backend
from toolkit.train.examples import IGNORED, Example


@given(st.integers(1, 40), st.integers(1, 12), st.integers(0, 5))
def test_every_record_is_seen_once_a_pass_whatever_the_step(count: int, per_step: int, seed: int) -> None:
    steps = 3 * count
    seen = [place for step in range(steps) for place in batches.of_step(step, per_step, count, seed)]
    assert len(seen) == steps * per_step
    for epoch in range(len(seen) // count):
        assert sorted(seen[epoch * count : (epoch + 1) * count]) == list(range(count))


def test_each_pass_has_an_order_of_its_own_and_a_seed_repeats_it() -> None:
    first, second = (batches.of_step(step, 30, 30, 3407) for step in (0, 1))
    assert first != second
    assert batches.of_step(1, 30, 30, 3407) == second
    assert batches.of_step(1, 30, 30, 3408) != second
    assert first[:6] == batches.of_step(0, 6, 30, 3407)


@given(
    st.lists(st.integers(1, 300), min_size=1, max_size=40), st.integers(1, 1000), st.integers(1, 9), st.integers(1, 4)
)
def test_a_layout_holds_every_record_once_within_its_bounds(
    lengths: list[int], tokens: int, records: int, shards: int
) -> None:
    passes = batches.lay_out(lengths, tokens, records, shards)
    assert Counter(place for members in passes for place in members) == Counter(range(len(lengths)))
    assert len(passes) % shards == 0
    for members in passes:
        assert len(members) <= records
        assert sum(lengths[place] for place in members) <= tokens or len(members) == 1
    assert passes == batches.lay_out(lengths, tokens, records, shards)


def test_a_layout_is_as_small_and_even_as_it_can_be() -> None:
    assert batches.lay_out([300] * 8, 4096, 8) == [list(range(8))]
    assert [len(members) for members in batches.lay_out([300] * 8, 1300, 8)] == [4, 4]
    assert batches.lay_out([5, 5], 100, 8, shards=3)[2] == []  # a shard without a record


def example(length: int, row: int) -> Example:
    generator = torch.Generator().manual_seed(row)
    ids = torch.randint(3, 480, (length,), generator=generator).tolist()
    return Example(ids, [IGNORED] * (length // 3) + ids[length // 3 :], row, False)


def test_a_packed_row_restarts_its_positions_and_never_predicts_across_records() -> None:
    records = [Example([5, 6, 7], [5, 6, 7], 1, False), Example([8, 9], [8, 9], 2, False)]
    batch = batches.collate(records, "cpu")
    assert batch.input_ids.tolist() == [[5, 6, 7, 8, 9]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9]]
    assert (batch.lengths, batch.rows) == ([3, 2], [1, 2])
    assert int((batch.labels != IGNORED).sum()) == sum(record.learned for record in records) == 3
    assert batch.learned.tolist() == [0, 1, 3]
    padded = batches.collate(records, "cpu", padded=True)
    assert padded.learned.tolist() == [0, 1, 2]  # of two rows, each without its last token
    assert padded.input_ids.tolist() == [[5, 6, 7], [8, 9, 0]]
    assert padded.labels.tolist() == [[IGNORED, 6, 7], [IGNORED, 9, IGNORED]]
    assert padded.lengths == [3, 2]
    assert int((padded.labels != IGNORED).sum()) == 3


def test_a_row_is_filled_to_a_multiple_with_a_record_of_which_nothing_is_learned() -> None:
    records = [Example([5, 6, 7], [5, 6, 7], 1, False), Example([8, 9], [8, 9], 2, False)]
    filled = batches.collate(records, "cpu", multiple=8)
    assert filled.input_ids.shape == filled.labels.shape == filled.position_ids.shape == (1, 8)
    assert filled.position_ids.tolist() == [[0, 1, 2, 0, 1, 0, 1, 2]]
    assert filled.labels.tolist() == [[IGNORED, 6, 7, IGNORED, 9, IGNORED, IGNORED, IGNORED]]
    assert (filled.lengths, filled.rows) == ([3, 2, 3], [1, 2])
    padded = batches.collate(records, "cpu", padded=True, multiple=8)
    assert padded.input_ids.shape == (2, 8) and padded.lengths == [3, 2]
    assert int((padded.labels != IGNORED).sum()) == 3
    assert batches.collate(records, "cpu", multiple=5).lengths == [3, 2]


def plain_losses(model: torch.nn.Module, records: list[Example]) -> list[float]:
    """The summed cross entropy of each record alone, from transformers' own logits and masks."""
    found = []
    for record in records:
        logits = model(torch.tensor([record.input_ids])).logits[0, :-1].double()
        labels = torch.tensor(record.labels[1:])
        found.append(float(torch.nn.functional.cross_entropy(logits, labels, ignore_index=IGNORED, reduction="sum")))
    return found


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_a_packed_record_has_the_loss_it_has_alone(family: str, tmp_path: Path) -> None:
    """For each family of the recipe, soft-capping and sliding windows included, in float32."""
    from transformers import AutoModelForCausalLM

    folder = save(tmp_path / "base", family)
    records = [example(length, row) for row, length in enumerate((40, 7, 90, 23, 61))]
    with torch.no_grad():
        reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")
        expected = plain_losses(reference.eval(), records)
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention.register()
        ).eval()
        loss.attach(model)
        one = torch.ones(())

        def found(chosen: list[int]) -> float:
            batch = batches.collate([records[place] for place in chosen], "cpu", multiple=8)
            return float(peft_backend.packed_loss(model, batch, one))

        everything = range(len(records))
        for place in everything:
            assert found([place]) == pytest.approx(expected[place], rel=2e-6)
            # what a record adds to a packed row is its own loss, wherever it stands in it
            others = [other for other in everything if other != place]
            assert found([*others[:2], place, *others[2:]]) - found(others) == pytest.approx(expected[place], rel=2e-5)


def test_gradients_of_packed_and_single_records_agree(tmp_path: Path) -> None:
    """The step's gradient does not depend on how its records are laid out; pieces of the logits included."""
    from transformers import AutoModelForCausalLM

    from tests.small import save_model

    folder = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    records = [example(length, row) for row, length in enumerate((400, 50, 300, 170))]
    total = torch.tensor(float(sum(record.learned for record in records)))
    assert total > 512  # more than one piece

    def gradients(layout: list[list[int]], checkpointing: bool) -> list[torch.Tensor]:
        model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation=attention.register()
        )
        model.train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        loss.attach(model)
        for members in layout:
            batch = batches.collate([records[place] for place in members], "cpu", multiple=len(members) * 8)
            peft_backend.packed_loss(model, batch, total).backward()
        return [parameter.grad for parameter in model.parameters()]

    single = gradients([[0], [1], [2], [3]], checkpointing=False)
    for layout, checkpointing in (([[0, 1, 2, 3]], False), ([[2, 0], [3, 1]], True)):
        for one, other in zip(single, gradients(layout, checkpointing), strict=True):
            assert torch.allclose(one, other, rtol=1e-4, atol=1e-6)


def test_a_silent_record_has_no_loss_and_no_gradient(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    from tests.small import save_model

    folder = save_model(tmp_path / "base", hidden_size=64, intermediate_size=128)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation=attention.register())
    loss.attach(model)
    batch = batches.collate([batches.silent(example(20, 1))], "cpu")
    value = peft_backend.packed_loss(model, batch, torch.ones(()))
    value.backward()
    assert value == 0
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in model.parameters())


def test_the_largest_pass_is_that_of_the_steps_themselves() -> None:
    lengths = [(7 * index) % 90 + 5 for index in range(40)]
    largest = 0
    for step in range(30):
        chosen = [lengths[place] for place in batches.of_step(step, 8, len(lengths), 3)]
        passes = batches.lay_out(chosen, 200, 8)
        largest = max(largest, *(sum(chosen[place] for place in members) for members in passes))
    assert batches.largest_pass(lengths, 8, 30, 3, 200, 8) == largest <= 200
