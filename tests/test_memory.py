"""Training's memory against what was measured, and the plan that is made from it."""

from dataclasses import replace

import pytest

from toolkit import memory
from toolkit import shape as shapes
from toolkit.config import LORA_TARGETS, TrainSettings
from toolkit.memory import Machine, Way
from toolkit.shape import Shape

SMOLLM2 = Shape(576, 30, 9, 3, 64, 1536, 49152, tied=True)
LLAMA_8B = shapes.known("llama-3.1-8b")
assert LLAMA_8B is not None


@pytest.mark.parametrize(
    ("bf16", "checkpointing", "length", "measured"),
    [
        (True, False, 256, 2783),
        (True, False, 1024, 4793),
        (True, True, 512, 2311),
        (True, True, 1024, 2816),
        (False, False, 256, 3076),
        (False, False, 1024, 6899),
    ],
)
def test_training_on_a_cpu_is_within_an_eighth_of_what_was_measured(
    bf16: bool, checkpointing: bool, length: int, measured: int
) -> None:
    """Peak resident MB of two steps of SmolLM2-135M, two records a pass, rank 16 on all linear layers."""
    settings = TrainSettings(batch_size=2, max_length=length, gradient_checkpointing=checkpointing)
    computed = memory.total(memory.training_cpu(SMOLLM2, settings, bf16=bf16)) / 1e6
    assert 0.88 < computed / measured < 1.12


def saved_for_backward(width: int, copied: bool) -> float:
    """Let torch say what three layers keep for the backward pass, in bytes a token and layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = Shape(128, 3, 4, 4, 32, 320, 64, tied=True)
    model = LlamaForCausalLM(
        LlamaConfig(
            hidden_size=shape.hidden,
            num_hidden_layers=shape.layers,
            num_attention_heads=shape.heads,
            num_key_value_heads=shape.kv_heads,
            intermediate_size=shape.intermediate,
            vocab_size=shape.vocab,
            tie_word_embeddings=True,
        )
    )
    model.config.use_cache = False
    model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=1, target_modules=LORA_TARGETS))
    if width == 2 and not copied:
        model = model.bfloat16()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    ids = torch.zeros((2, 512), dtype=torch.long)
    kept: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        # a copy of a weight has two dimensions and as many rows as a layer, never as many as there are tokens
        if storage.data_ptr() not in weights and ids.numel() * shape.hidden * 2 <= storage.nbytes():
            kept[storage.data_ptr()] = tensor
        return tensor

    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=width == 2),
    ):
        model(input_ids=ids)
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values()) / ids.numel() / shape.layers


@pytest.mark.parametrize(("width", "copied"), [(2, True), (2, False), (4, False)])
def test_activations_are_what_torch_keeps(width: int, copied: bool) -> None:
    shape = Shape(128, 3, 4, 4, 32, 320, 64, tied=True)
    computed = memory.layer_activations(shape, LORA_TARGETS, width, copied=copied)
    # The last norm's input is a layer's no more.
    assert saved_for_backward(width, copied) == pytest.approx(computed, rel=0.06)


def test_more_of_anything_takes_more_memory() -> None:
    def need(**changes: object) -> int:
        settings = TrainSettings(gradient_checkpointing=False).model_copy(update=changes)
        return memory.total(memory.training_cpu(SMOLLM2, settings, bf16=True))

    assert need() < need(batch_size=3)
    assert need() < need(max_length=4096)
    assert need() < need(lora_r=64)
    assert need() > need(gradient_checkpointing=True)
    assert need() > need(lora_targets=["q_proj"])


def test_nf4_weights_of_llama_8b() -> None:
    assert LLAMA_8B is not None
    size = memory.weights_cuda(LLAMA_8B, four_bit=True)
    assert size == pytest.approx(5.70e9, rel=0.01)  # unsloth/Meta-Llama-3.1-8B-bnb-4bit holds 5.70 GB of safetensors
    assert memory.weights_cuda(LLAMA_8B, four_bit=False) == 2 * 8_030_261_248


@pytest.mark.parametrize("unsloth", [True, False])
def test_the_recipe_fits_a_16_gb_card_and_not_an_8_gb_one(unsloth: bool) -> None:
    assert LLAMA_8B is not None
    need = memory.total(memory.training_cuda(LLAMA_8B, TrainSettings(), four_bit=True, unsloth=unsloth))
    assert 8e9 < need < 15e9


@pytest.mark.parametrize(
    ("card", "tokens"),
    [(8, 2972), (12, 21_848), (16, 40_724), (24, 78_475), (40, 153_977), (48, 191_728), (80, 342_733)],
)
def test_unsloths_published_contexts_take_just_their_card(card: int, tokens: int) -> None:
    """https://unsloth.ai/docs/basics/unsloth-benchmarks: Llama 3.1 8B, QLoRA, rank 32, batch 1, longest context."""
    assert LLAMA_8B is not None
    settings = TrainSettings(lora_r=32, batch_size=1, max_length=tokens)
    parts = memory.training_cuda(LLAMA_8B, settings, four_bit=True, unsloth=True)
    need = memory.total(parts) - parts["adapter in 16 bits"]  # which is our loop's
    assert need / 2**30 == pytest.approx(card, rel=0.03)


@pytest.mark.parametrize(
    ("tokens", "checkpointing", "gib"),
    [(2048, True, 6.31), (2048, False, 12.80), (4096, False, 19.64), (8192, False, 33.42), (16384, False, 60.77)],
)
def test_unsloth_on_an_h100_took_what_is_computed(tokens: int, checkpointing: bool, gib: float) -> None:
    """Llama-3.1-8B, QLoRA of rank 16, one packed row, one attention kernel: torch's peak, without CUDA and our loop."""
    assert LLAMA_8B is not None
    parts = memory.training_cuda(
        LLAMA_8B, TrainSettings(), four_bit=True, unsloth=True, tokens=tokens, checkpointing=checkpointing
    )
    assert (memory.total(parts) - parts["context"] - parts["adapter in 16 bits"]) / 2**30 == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(
    ("base", "tokens", "checkpointing", "shards", "gigabytes"),
    [
        ("8b", 12_076, True, 1, 12.55),
        ("8b", 9_657, False, 1, 74.8),
        ("8b", 4_071, False, 1, 41.8),
        ("8b", 12_076, True, 2, 9.66),
        ("70b", 6_056, True, 2, 35.75),
    ],
)
def test_peft_on_a_card_took_what_is_computed(
    base: str, tokens: int, checkpointing: bool, shards: int, gigabytes: float
) -> None:
    """Llama-3.1's shapes, rank 16, on an H100, or divided by FSDP over two H200s: torch's peak on each card."""
    shape = shapes.known(f"llama-3.1-{base}")
    assert shape is not None
    four_bit = checkpointing  # in the others the weights were dequantized once
    there = Machine(None, True, False, four_bit, True, shards)
    parts = memory.peak(shape, TrainSettings(), there, tokens, Way(checkpointing))
    assert memory.total(parts) / 1e9 == pytest.approx(gigabytes, rel=0.1)


@pytest.mark.parametrize(
    ("base", "gigabytes", "shards", "memory_gb"),
    [("70b", 48, 2, 38.0), ("70b", 24, 4, 20.7), ("405b", 80, 8, 47.0)],
)
def test_the_readmes_plans_of_several_cards(base: str, gigabytes: int, shards: int, memory_gb: float) -> None:
    there = replace(card(gigabytes, unsloth=False), shards=shards)
    chosen = memory.plan(shapes.known(f"llama-3.1-{base}"), TrainSettings(), there, shards)
    assert chosen.fits and chosen.estimate is not None and chosen.estimate / 1e9 == pytest.approx(memory_gb, abs=0.05)


def test_more_cards_hold_what_one_cannot() -> None:
    shape = shapes.known("llama-3.1-70b")
    assert shape is not None
    found = [memory.plan(shape, TrainSettings(), replace(card(24, unsloth=False), shards=n), n) for n in (1, 2, 4, 8)]
    assert [chosen.fits for chosen in found] == [False, False, True, True]
    assert not any(chosen.way.dequantized for chosen in found[1:])
    estimates = [chosen.estimate for chosen in found[2:]]
    assert all(need is not None and need < 24 * 2**30 for need in estimates)


def card(gigabytes: float, *, unsloth: bool = True) -> Machine:
    """A card of that size with nothing on it but the CUDA context."""
    return Machine(int(0.97 * gigabytes * 2**30 - memory.CUDA_CONTEXT), True, unsloth, True, True)


@pytest.mark.parametrize(
    ("gigabytes", "way", "tokens", "memory_gb"),
    [
        (8, Way(checkpointing=True, offloaded=True), 6_000, 7.3),
        (10, Way(checkpointing=True), 10_100, 9.3),
        (12, Way(checkpointing=True), 16_384, 10.8),
        (16, Way(checkpointing=True), 16_384, 10.8),
        (24, Way(checkpointing=False), 4_300, 23.3),
        (32, Way(checkpointing=False), 6_500, 31.3),
        (48, Way(checkpointing=False, dequantized=True), 8_000, 47.3),
        (80, Way(checkpointing=False, dequantized=True), 16_384, 79.0),
        (141, Way(checkpointing=False, dequantized=True), 16_384, 79.0),
    ],
)
def test_the_plan_of_each_card(gigabytes: int, way: Way, tokens: int, memory_gb: float) -> None:
    """The README's table: tokens in one forward pass, and the computed peak, less than the card has."""
    chosen = memory.plan(LLAMA_8B, TrainSettings(), card(gigabytes))
    assert chosen.fits and chosen.way == way
    assert chosen.tokens == pytest.approx(tokens, rel=0.01) and chosen.tokens <= memory.ENOUGH
    assert chosen.estimate is not None and chosen.estimate < gigabytes * 2**30
    assert chosen.estimate / 1e9 == pytest.approx(memory_gb, abs=0.05)
    said = memory.describe(chosen, TrainSettings())
    assert "8 records a step" in said and f"{chosen.tokens:,} tokens" in said and "free" in said
    assert ("main memory" in said) == way.offloaded and ("dequantized once" in said) == way.dequantized


@pytest.mark.parametrize("unsloth", [True, False])
def test_a_larger_card_never_gets_a_smaller_plan(unsloth: bool) -> None:
    plans = [memory.plan(LLAMA_8B, TrainSettings(), card(size, unsloth=unsloth)) for size in range(6, 100, 2)]
    assert [plan.fits for plan in plans] == sorted(plan.fits for plan in plans)
    fitting = [plan for plan in plans if plan.fits]
    ranks = [
        (not plan.way.checkpointing, not plan.way.offloaded, plan.way.dequantized, plan.tokens) for plan in fitting
    ]
    assert ranks == sorted(ranks)


def test_weights_are_dequantized_only_where_there_are_any_and_room_beside_them() -> None:
    """A 16-bit base has nothing to dequantize, a CPU neither, and FSDP's shapes are unknown."""
    large, settings = card(80), TrainSettings()
    assert memory.plan(LLAMA_8B, settings, large).way.dequantized
    assert not memory.plan(LLAMA_8B, settings, replace(large, four_bit=False)).way.dequantized
    assert not memory.plan(LLAMA_8B, settings, replace(large, cuda=False)).way.dequantized
    assert not memory.plan(None, settings, large).way.dequantized
    always = TrainSettings(gradient_checkpointing=True)
    assert memory.plan(LLAMA_8B, always, large).way == Way(checkpointing=True, dequantized=True)
    sixteen = memory.peak(LLAMA_8B, settings, replace(large, four_bit=False), 4096, Way(False))
    assert memory.peak(LLAMA_8B, settings, large, 4096, Way(False, dequantized=True)) == sixteen


def test_settings_overrule_the_plan_and_what_does_not_fit_is_said() -> None:
    always = TrainSettings(gradient_checkpointing=True)
    assert memory.plan(LLAMA_8B, always, card(80)).way.checkpointing
    never = memory.plan(LLAMA_8B, TrainSettings(gradient_checkpointing=False), card(12))
    assert not never.fits and not never.way.checkpointing and "can be used" in never.reason
    plain = memory.plan(LLAMA_8B, TrainSettings(), card(8, unsloth=False))
    assert not plain.way.offloaded, "only Unsloth leaves embeddings in main memory"
    assert not memory.plan(LLAMA_8B, TrainSettings(), card(8), workers=2).way.offloaded, "and only for one card"
    tiny = memory.plan(LLAMA_8B, TrainSettings(), card(6))
    assert not tiny.fits and tiny.way.checkpointing and tiny.tokens == 2048


def test_a_step_sees_the_same_records_whatever_the_plan() -> None:
    """The plan bounds a forward pass; without packing it holds batch_size records, and a worker has its share."""
    loose = memory.plan(LLAMA_8B, TrainSettings(packing=False), card(80))
    assert loose.records == 2 and loose.tokens <= 2 * 2048
    assert memory.plan(LLAMA_8B, TrainSettings(), card(80), workers=4).tokens <= 2 * 2048
    unknown = memory.plan(None, TrainSettings(), card(80))
    assert (unknown.tokens, unknown.way.checkpointing, unknown.estimate) == (2 * 2048, True, None)


def test_running_out_of_memory_halves_the_pass_until_one_record_is_left() -> None:
    chosen = memory.plan(LLAMA_8B, TrainSettings(), card(80))
    smaller = chosen.halved(3000, 8)
    assert smaller is not None and smaller.tokens == 1500
    assert chosen.halved(3000, 1) is None


def test_the_estimate_is_that_of_the_records_there_are() -> None:
    chosen = memory.plan(LLAMA_8B, TrainSettings(), card(80))
    sized = memory.of_records(chosen, LLAMA_8B, TrainSettings(), card(80), 4096)
    assert sized.estimate is not None and sized.estimate / 2**30 == pytest.approx(29.3, rel=0.1)
    assert "4,096 at most" in memory.describe(sized, TrainSettings())
    unknown = memory.plan(None, TrainSettings(), card(80))
    assert memory.of_records(unknown, None, TrainSettings(), card(80), 4096) == unknown
