"""The plan of a step: what is chosen on which device, and that a step's records stay what the settings say."""

import itertools
import math
import re
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.places import REPOSITORY
from toolkit.core.errors import ToolkitError
from toolkit.core.train_settings import TrainSettings
from toolkit.model import memory
from toolkit.model.known_models import known_model
from toolkit.model.memory_plan import (
    MAX_TOKENS,
    Device,
    MemoryPlan,
    Strategy,
    describe_plan,
    halved,
    peak,
    plan,
    share_of,
)
from toolkit.model.model_config import ModelConfig

LLAMA_8B = known_model("llama-3.1-8b")
assert LLAMA_8B is not None
SOLD = (8, 10, 12, 16, 24, 32, 48, 80, 96, 141)  # GB of GPUs
GUIDE = REPOSITORY / "docs/guide"
ONE, SEVERAL = ((GUIDE / name).read_text(encoding="utf-8") for name in ("gpu.md", "several-gpus.md"))


def gpu(gigabytes: float, *, unsloth: bool = True) -> Device:
    """A GPU of that size with nothing on it but the CUDA context."""
    return Device(int(0.97 * gigabytes * 2**30 - memory.CUDA_CONTEXT), True, unsloth, True, True)


def guide_row(gigabytes: list[int], chosen: MemoryPlan, before: MemoryPlan | None) -> str:
    """A row of the guide's table: a plan, and the GPUs that get it."""
    ways = ["all kept" if not chosen.strategy.checkpointing else "recomputed"]
    if before is None:
        ways = ["activations recomputed"]
    ways += ["the embeddings in main memory"] * chosen.strategy.offloaded
    ways += ["the 4-bit weights dequantized once"] * chosen.strategy.dequantized
    sizes = f"{gigabytes[0]} GB and more" if gigabytes[-1] == SOLD[-1] else f"{', '.join(map(str, gigabytes))} GB"
    records = f"{chosen.micro_batch} of 8 records" if before is None else str(chosen.micro_batch)
    return f"| {sizes} | {', '.join(ways)} | {records} | {(chosen.estimate or 0) / 1e9:.1f} GB |"


def test_the_guides_table_is_what_the_plan_computes() -> None:
    """For GPUs as they are sold, with records of 2,048 tokens; each plan takes less than the GPU has."""
    rows: list[str] = []
    plans = [(size, plan(LLAMA_8B, TrainSettings(), gpu(size))) for size in SOLD]
    before = None
    for _, alike in itertools.groupby(plans, lambda pair: (pair[1].strategy, pair[1].micro_batch)):
        sizes, found = zip(*alike, strict=True)
        rows.append(guide_row([*sizes], found[0], before))
        before = found[0]
    shown = ONE[ONE.index("| GPU | plan for Llama-3.1-8B") :].splitlines()[2 : 2 + len(rows)]
    assert shown == rows
    for size, chosen in plans:
        assert chosen.fits and chosen.estimate is not None and chosen.estimate < size * 2**30
        assert chosen.tokens == chosen.micro_batch * 2048 <= MAX_TOKENS
        said, way = describe_plan(chosen), chosen.strategy
        assert f"of {chosen.micro_batch}, {chosen.tokens:,} tokens" in said and "8 records a step" in said
        assert ("main memory" in said) == way.offloaded and ("dequantized once" in said) == way.dequantized
        assert "free" in said


def test_the_guides_smallest_gpus() -> None:
    """What is free with CUDA in use, in steps of 50 MB; CUDA's own 0.5 GB come on top, and tenths are rounded up."""
    short: dict[str, Any] = {"max_length": 1024}
    eight: dict[str, Any] = {**short, "optim": "adamw_8bit"}
    rows = []
    for values in ({}, short, eight, {**eight, "lora_r": 8}):
        steps = range(5_000, 9_000, 50)
        least = next(
            size
            for size in steps
            if plan(LLAMA_8B, TrainSettings(**values), Device(size * 10**6, True, True, True, True)).fits
        )
        rows.append(f"{math.ceil((least + 500) / 100) / 10} GB |")
    table = ONE[ONE.index("| settings | free memory |") :].splitlines()[2:6]
    assert [line.rsplit("| ", 1)[1] for line in table] == rows


@pytest.mark.parametrize("unsloth", [True, False])
def test_a_larger_gpu_never_gets_a_smaller_plan(unsloth: bool) -> None:
    plans = [plan(LLAMA_8B, TrainSettings(), gpu(gigabytes, unsloth=unsloth)) for gigabytes in range(6, 150, 2)]
    assert [found.fits for found in plans] == sorted(found.fits for found in plans)
    ways = [(found.strategy, found.micro_batch) for found in plans if found.fits]
    ranks = [(not way.checkpointing, not way.offloaded, way.dequantized, records) for way, records in ways]
    assert ranks == sorted(ranks) and len(set(ranks)) > 4


def test_the_estimate_is_that_of_the_micro_batch() -> None:
    device, settings = gpu(24), TrainSettings()
    chosen = plan(LLAMA_8B, settings, device)
    assert LLAMA_8B is not None
    assert chosen.estimate == memory.total(peak(LLAMA_8B, settings, device, chosen.tokens, chosen.strategy))
    assert "context" not in peak(LLAMA_8B, settings, device, chosen.tokens, chosen.strategy)


@pytest.mark.parametrize(
    ("base", "gigabytes", "shards", "said"),
    [
        ("70b", 48, 2, "| 70B | two of 48 GB | {} GB |"),
        ("70b", 24, 4, "| 70B | four of 24 GB | {} GB |"),
        ("405b", 80, 8, "| 405B | eight of 80 GB | {} GB |"),
    ],
)
def test_the_guides_plans_of_several_gpus(base: str, gigabytes: int, shards: int, said: str) -> None:
    device = replace(gpu(gigabytes, unsloth=False), shards=shards, processes=shards)
    chosen = plan(known_model(f"llama-3.1-{base}"), TrainSettings(), device)
    assert chosen.fits and chosen.estimate is not None
    assert said.format(f"{chosen.estimate / 1e9:.1f}") in SEVERAL


def test_more_gpus_hold_what_one_cannot() -> None:
    device = gpu(24, unsloth=False)
    found = [
        plan(known_model("llama-3.1-70b"), TrainSettings(), replace(device, shards=count, processes=count))
        for count in (1, 2, 4, 8)
    ]
    assert [chosen.fits for chosen in found] == [False, False, True, True]
    assert not any(chosen.strategy.dequantized for chosen in found[1:])
    for chosen in found[2:]:
        assert chosen.estimate is not None and chosen.estimate < 24 * 2**30
        assert chosen.micro_batch * chosen.accumulation * chosen.processes == 8


def test_fp8_takes_the_memory_of_dequantized_weights_and_is_used_where_it_may_be() -> None:
    """Where the settings demand it, no other way is offered; else it gives way where it does not fit."""
    assert LLAMA_8B is not None
    demanded, left_open = TrainSettings(base_compute="fp8"), TrainSettings()
    for settings in (demanded, left_open):
        found = plan(LLAMA_8B, settings, replace(gpu(80), fp8=True))
        assert found.strategy == Strategy(False, dequantized=True, fp8=True)
        assert "the frozen weights in FP8" in describe_plan(found)
        bf16 = plan(LLAMA_8B, TrainSettings(base_compute="bf16"), gpu(80))
        assert (found.estimate, found.micro_batch) == (bf16.estimate, bf16.micro_batch)
        sixteen = plan(LLAMA_8B, settings, replace(gpu(80), fp8=True, four_bit=False))
        assert sixteen.strategy == Strategy(False, fp8=True) and sixteen.estimate == bf16.estimate
    small = plan(LLAMA_8B, left_open, replace(gpu(16), fp8=True))
    assert small.fits and not small.strategy.fp8 and small == plan(LLAMA_8B, left_open, gpu(16))
    assert not plan(LLAMA_8B, demanded, replace(gpu(16), fp8=True)).fits
    middle = plan(LLAMA_8B, demanded, replace(gpu(24), fp8=True))
    assert middle.fits and middle.strategy == Strategy(True, dequantized=True, fp8=True)
    always = TrainSettings(base_compute="fp8", gradient_checkpointing=True)
    assert plan(LLAMA_8B, always, replace(gpu(80), fp8=True)).strategy == middle.strategy


def test_weights_are_dequantized_only_where_there_are_any_and_room_beside_them() -> None:
    """A 16-bit base has nothing to dequantize, a CPU neither."""
    large, settings = gpu(80), TrainSettings()
    assert LLAMA_8B is not None
    assert plan(LLAMA_8B, settings, large).strategy.dequantized
    assert not plan(LLAMA_8B, settings, replace(large, four_bit=False)).strategy.dequantized
    assert not plan(LLAMA_8B, settings, replace(large, cuda=False)).strategy.dequantized
    assert not plan(None, settings, large).strategy.dequantized
    always = TrainSettings(gradient_checkpointing=True)
    assert plan(LLAMA_8B, always, large).strategy == Strategy(checkpointing=True, dequantized=True)
    sixteen = peak(LLAMA_8B, settings, replace(large, four_bit=False), 4096, Strategy(False))
    assert peak(LLAMA_8B, settings, large, 4096, Strategy(False, dequantized=True)) == sixteen


def test_settings_overrule_the_plan_and_what_does_not_fit_is_said() -> None:
    always = TrainSettings(gradient_checkpointing=True)
    assert plan(LLAMA_8B, always, gpu(80)).strategy.checkpointing
    never = plan(LLAMA_8B, TrainSettings(gradient_checkpointing=False), gpu(12))
    assert not never.fits and not never.strategy.checkpointing and "can be used" in never.reason
    assert not plan(LLAMA_8B, TrainSettings(), gpu(8, unsloth=False)).strategy.offloaded, "Unsloth alone can"
    assert not plan(LLAMA_8B, TrainSettings(), replace(gpu(8), processes=2)).strategy.offloaded, "and on one GPU"
    tiny = plan(LLAMA_8B, TrainSettings(), gpu(6))
    assert not tiny.fits and tiny.strategy.checkpointing and (tiny.micro_batch, tiny.tokens) == (1, 2048)


@pytest.mark.parametrize("shape", [None, LLAMA_8B])
def test_what_is_unknown_leaves_the_settings_own_batch(shape: ModelConfig | None) -> None:
    chosen = plan(shape, TrainSettings(), replace(gpu(80), free=None if shape else 10**11))
    assert (chosen.micro_batch, chosen.accumulation, chosen.tokens) == (2, 4, 2 * 2048)
    assert chosen.fits and chosen.estimate is None and chosen.strategy == Strategy(checkpointing=True)
    assert (
        "computed" not in describe_plan(chosen) and "unknown" in chosen.reason
    ) or "the free memory" in chosen.reason


def test_a_cpu_takes_no_more_at_once_than_the_settings_call_a_batch() -> None:
    small = ModelConfig(576, 30, 9, 3, 64, 1536, 49152, tied=True)
    device = Device(10**12, False, False, False, True)
    assert plan(small, TrainSettings(), device).micro_batch == 2
    assert plan(small, TrainSettings(batch_size=4, gradient_accumulation_steps=2), device).micro_batch == 4


@given(
    batch_size=st.integers(1, 40),
    accumulation=st.integers(1, 24),
    processes=st.sampled_from([1, 1, 2, 3, 4, 8]),
    packing=st.booleans(),
    max_length=st.sampled_from([64, 512, 2048]),
    gigabytes=st.floats(4, 150),
    kinds=st.tuples(st.booleans(), st.booleans(), st.booleans(), st.booleans()),
    at_most=st.integers(0, 30),
)
def test_a_step_sees_the_same_records_whatever_the_plan(
    batch_size: int,
    accumulation: int,
    processes: int,
    packing: bool,
    max_length: int,
    gigabytes: float,
    kinds: tuple[bool, bool, bool, bool],
    at_most: int,
) -> None:
    settings = TrainSettings(
        batch_size=batch_size, gradient_accumulation_steps=accumulation, packing=packing, max_length=max_length
    )
    cuda, unsloth, known, told = kinds
    free = int(gigabytes * 2**30) if told else None
    device = Device(free, cuda, cuda and unsloth, True, True, processes=processes)
    if batch_size * accumulation % processes:
        with pytest.raises(ToolkitError) as caught:
            plan(LLAMA_8B, settings, device, at_most=at_most)
        options = dict(re.findall(r"--set train\.(\w+)=(\d+)", caught.value.hint or ""))
        settings = settings.model_copy(update={name: int(value) for name, value in options.items()})
        assert {**options} and settings.batch_size == batch_size
    chosen = plan(LLAMA_8B if known else None, settings, device, at_most=at_most)
    assert (
        chosen.micro_batch * chosen.accumulation * processes
        == settings.batch_size * settings.gradient_accumulation_steps
    )
    assert (
        chosen.processes == processes and chosen.micro_batch >= 1 and chosen.tokens == chosen.micro_batch * max_length
    )
    assert not at_most or chosen.micro_batch <= at_most
    assert packing or chosen.micro_batch <= batch_size
    assert not chosen.fits or not cuda or chosen.tokens <= max(MAX_TOKENS, batch_size * max_length)
    if chosen.fits and chosen.estimate is not None:
        assert chosen.estimate <= (free or 0)


def test_without_packing_a_micro_batch_is_batch_size_at_most() -> None:
    loose = TrainSettings(packing=False, batch_size=3, gradient_accumulation_steps=4)
    assert plan(LLAMA_8B, loose, gpu(141)).micro_batch == 3
    assert plan(LLAMA_8B, loose.model_copy(update={"packing": True}), gpu(141)).micro_batch == 6
    assert plan(LLAMA_8B, loose, replace(gpu(141), processes=4)).micro_batch == 3
    assert plan(LLAMA_8B, loose, replace(gpu(141), processes=6)).micro_batch == 2


@pytest.mark.parametrize(("processes", "accumulation"), [(3, 3), (5, 5), (16, 8), (6, 3), (32, 16), (7, 7)])
def test_records_that_cannot_be_shared_evenly_are_refused_with_a_way_out(processes: int, accumulation: int) -> None:
    """The hint changes accumulation alone, as little as it can."""
    settings, device = TrainSettings(), replace(gpu(80), processes=processes)
    with pytest.raises(ToolkitError, match="the 8 records of a step") as caught:
        plan(LLAMA_8B, settings, device)
    assert f"--set train.gradient_accumulation_steps={accumulation}" in (caught.value.hint or "")
    chosen = plan(LLAMA_8B, settings.model_copy(update={"gradient_accumulation_steps": accumulation}), device)
    assert chosen.micro_batch * chosen.accumulation * processes == 2 * accumulation


def test_known_lengths_give_larger_micro_batches_than_max_length_would() -> None:
    """Eight records of 300 to 1,000 tokens; the longest of a micro-batch decide."""
    lengths = [1000, 800, 500, 400, 350, 300, 300, 300]

    def tokens_of(records: int) -> int:
        return sum(lengths[:records])

    for gigabytes in (8, 10, 24, 48):
        blind, seeing = (
            plan(LLAMA_8B, TrainSettings(), gpu(gigabytes), tokens_of=known) for known in (None, tokens_of)
        )
        assert seeing.micro_batch > blind.micro_batch and seeing.tokens == tokens_of(seeing.micro_batch)
        assert seeing.estimate is not None and blind.estimate is not None
        assert seeing.fits and seeing.estimate < gigabytes * 2**30
    assert plan(LLAMA_8B, TrainSettings(), gpu(24), tokens_of=tokens_of).micro_batch == 8


def test_what_fits_is_judged_by_the_longest_record_there_is() -> None:
    """Records of 2,048 tokens do not fit a GPU of 7 GB; of 200 they do."""
    assert not plan(LLAMA_8B, TrainSettings(), gpu(7)).fits
    short = plan(LLAMA_8B, TrainSettings(), gpu(7), tokens_of=lambda records: 200 * records)
    assert short.fits and short.estimate is not None and short.estimate < 7 * 2**30
    kept = plan(LLAMA_8B, TrainSettings(), gpu(16), tokens_of=lambda records: 200 * records)
    assert not kept.strategy.checkpointing, "which 16 GB are too little for with records of 2,048 tokens"


@pytest.mark.parametrize(
    ("micro_batch", "share", "smaller"),
    [(8, 8, 4), (13, 13, 1), (1, 13, 0), (6, 6, 3), (3, 6, 1), (5, 15, 1), (9, 18, 3)],
)
def test_half_a_micro_batch_divides_the_share_too(micro_batch: int, share: int, smaller: int) -> None:
    assert halved(micro_batch, share) == smaller


@given(st.integers(1, 200))
def test_halving_ends_at_nothing(share: int) -> None:
    sizes = list(
        itertools.takewhile(bool, itertools.accumulate(range(9), lambda size, _: halved(size, share), initial=share))
    )
    assert sizes[-1] == 1 and all(share % size == 0 for size in sizes)
    assert all(after <= before / 2 for before, after in itertools.pairwise(sizes))


@pytest.mark.parametrize("gigabytes", [8, 10, 16, 24, 48, 80])
def test_after_memory_ran_out_the_micro_batch_is_smaller_and_the_way_the_same(gigabytes: int) -> None:
    """A smaller one would fit without checkpointing, or with dequantized weights, by sums that were just wrong."""
    settings, device = TrainSettings(), gpu(gigabytes)
    first = plan(LLAMA_8B, settings, device)
    share, found = share_of(settings, 1), first
    while smaller := halved(found.micro_batch, share):
        found = plan(LLAMA_8B, settings, device, at_most=smaller)
        assert (found.micro_batch, found.strategy) == (smaller, first.strategy)
        assert found.micro_batch * found.accumulation == share
    assert found.micro_batch == 1
