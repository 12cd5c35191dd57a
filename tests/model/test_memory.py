"""Training's memory against what was measured."""

import pytest

from toolkit.core.train_settings import LORA_TARGETS, TrainSettings
from toolkit.model import memory
from toolkit.model.known_models import known_model
from toolkit.model.memory_plan import Device, Strategy, peak
from toolkit.model.model_config import ModelConfig

SMOLLM2 = ModelConfig(576, 30, 9, 3, 64, 1536, 49152, tied=True)
LLAMA_8B = known_model("llama-3.1-8b")
assert LLAMA_8B is not None


@pytest.mark.parametrize(
    ("bf16", "checkpointing", "length", "measured"),
    [
        (True, False, 256, 3010),
        (True, False, 1024, 6406),
        (True, True, 512, 2735),
        (True, True, 1024, 3827),
        (False, False, 256, 3230),
        (False, False, 1024, 8037),
        (False, True, 256, 2487),
        (False, True, 1024, 5226),
    ],
)
def test_training_on_a_cpu_is_within_a_fifteenth_of_what_was_measured(
    bf16: bool, checkpointing: bool, length: int, measured: int
) -> None:
    """Peak resident MB of a few steps of SmolLM2-135M's shape, two records a micro-batch, rank 16 on all layers."""
    settings = TrainSettings(batch_size=2, max_length=length, gradient_checkpointing=checkpointing)
    computed = memory.total(memory.training_cpu(SMOLLM2, settings, bf16=bf16)) / 1e6
    assert computed == pytest.approx(measured, rel=1 / 15)


LONG_ROWS = ModelConfig(128, 8, 8, 4, 16, 384, 2048, tied=True), 8192
WIDE = ModelConfig(2048, 4, 32, 8, 64, 8192, 8192, tied=True), 2048


@pytest.mark.parametrize(
    ("bf16", "checkpointing", "case", "measured"),
    [
        (True, False, LONG_ROWS, 3186),
        (True, True, LONG_ROWS, 1710),
        (False, False, LONG_ROWS, 4148),
        (False, True, LONG_ROWS, 2188),
        (True, False, WIDE, 4570),
        (True, True, WIDE, 3328),
        (False, False, WIDE, 5020),
        (False, True, WIDE, 3885),
    ],
)
def test_other_shapes_on_a_cpu_are_within_a_fifth(
    bf16: bool, checkpointing: bool, case: tuple[ModelConfig, int], measured: int
) -> None:
    """Long rows, whose masks are most of what a step takes; and wide layers. Peak resident MB of one step."""
    shape, tokens = case
    parts = memory.training_cpu(shape, TrainSettings(), bf16=bf16, tokens=tokens, checkpointing=checkpointing)
    assert memory.total(parts) / 1e6 == pytest.approx(measured, rel=0.2)


def saved_for_backward(width: int, copied: bool) -> float:
    """Let torch say what three layers keep for the backward pass, in bytes a token and layer."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = ModelConfig(128, 3, 4, 4, 32, 320, 64, tied=True)
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
    held: int = sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
    return held / int(ids.numel()) / shape.layers


@pytest.mark.parametrize(("width", "copied"), [(2, True), (2, False), (4, False)])
def test_activations_are_what_torch_keeps(width: int, copied: bool) -> None:
    shape = ModelConfig(128, 3, 4, 4, 32, 320, 64, tied=True)
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
    assert need() > need(target_modules=["q_proj"])


def test_nf4_weights_of_llama_8b() -> None:
    assert LLAMA_8B is not None
    size = memory.weights_cuda(LLAMA_8B, four_bit=True)
    assert size == pytest.approx(5.70e9, rel=0.01)  # unsloth/Meta-Llama-3.1-8B-bnb-4bit holds 5.70 GB of safetensors
    assert memory.weights_cuda(LLAMA_8B, four_bit=False) == 2 * 8_030_261_248


@pytest.mark.parametrize("unsloth", [True, False])
def test_the_recipe_fits_a_16_gb_gpu_and_not_an_8_gb_one(unsloth: bool) -> None:
    assert LLAMA_8B is not None
    need = memory.total(memory.training_cuda(LLAMA_8B, TrainSettings(), four_bit=True, unsloth=unsloth))
    assert 8e9 < need < 15e9


@pytest.mark.parametrize(
    ("gigabytes", "tokens"),
    [(8, 2972), (12, 21_848), (16, 40_724), (24, 78_475), (40, 153_977), (48, 191_728), (80, 342_733)],
)
def test_unsloths_published_contexts_take_just_their_gpu(gigabytes: int, tokens: int) -> None:
    """https://unsloth.ai/docs/basics/unsloth-benchmarks: Llama 3.1 8B, QLoRA, rank 32, batch 1, longest context."""
    assert LLAMA_8B is not None
    settings = TrainSettings(lora_r=32, batch_size=1, max_length=tokens, optim="adamw_8bit")
    need = memory.total(memory.training_cuda(LLAMA_8B, settings, four_bit=True, unsloth=True))
    assert need / 2**30 == pytest.approx(gigabytes, rel=0.03)


@pytest.mark.parametrize(
    ("tokens", "checkpointing", "gib"),
    [(2048, True, 6.31), (2048, False, 12.80), (4096, False, 19.64), (8192, False, 33.42), (16384, False, 60.77)],
)
def test_unsloth_on_an_h100_took_what_is_computed(tokens: int, checkpointing: bool, gib: float) -> None:
    """Llama-3.1-8B, QLoRA of rank 16, one packed row, one attention kernel: torch's peak, without CUDA."""
    assert LLAMA_8B is not None
    settings = TrainSettings(optim="adamw_8bit")
    parts = memory.training_cuda(
        LLAMA_8B, settings, four_bit=True, unsloth=True, tokens=tokens, checkpointing=checkpointing
    )
    assert (memory.total(parts) - parts["context"]) / 2**30 == pytest.approx(gib, rel=0.1)


@pytest.mark.parametrize(
    ("records", "tokens", "processes", "shards", "unsloth", "gigabytes"),
    [
        (8, 4_071, 1, 1, True, 31.3),
        (64, 12_270, 1, 1, True, 61.1),
        (64, 12_270, 2, 1, True, 59.7),
        (64, 12_270, 2, 2, False, 75.4),
        (8, 2_057, 2, 1, False, 29.6),
    ],
)
def test_the_trainer_on_a_gpu_took_what_is_computed(
    records: int, tokens: int, processes: int, shards: int, unsloth: bool, gigabytes: float
) -> None:
    """Llama-3.1-8B's shape, rank 16, 4 bits, all activations kept, on H200s: alone, under DDP, FSDP2 and ZeRO-2.

    The 4-bit weights were dequantized once, but under FSDP2.
    """
    assert LLAMA_8B is not None
    device = Device(None, True, unsloth, True, True, shards, processes)
    parts = peak(LLAMA_8B, TrainSettings(), device, tokens, Strategy(False, dequantized=shards == 1))
    assert gigabytes == pytest.approx(memory.total(parts) / 1e9, rel=0.1)


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
def test_peft_on_a_gpu_took_what_is_computed(
    base: str, tokens: int, checkpointing: bool, shards: int, gigabytes: float
) -> None:
    """Llama-3.1's shapes, rank 16, with the own loop of a81497a: on an H100, or divided by FSDP over two H200s."""
    shape = known_model(f"llama-3.1-{base}")
    assert shape is not None
    four_bit = checkpointing  # in the others the weights were dequantized once
    device = Device(None, True, False, four_bit, True, shards)
    settings = TrainSettings(optim="adamw_8bit")
    parts = peak(shape, settings, device, tokens, Strategy(checkpointing))
    assert memory.total(parts) / 1e9 == pytest.approx(gigabytes, rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize(("label", "layers", "shards"), [("llama-3.1-70b", 80, 4), ("llama-3.1-405b", 126, 8)])
def test_a_gpus_share_of_a_sharded_base_is_that_of_its_tensors(label: str, layers: int, shards: int) -> None:
    """Of transformers' own tensors, without their values, in bitsandbytes' 4 bits, divided by rows as FSDP2 does it."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = known_model(label)
    assert shape is not None and shape.layers == layers
    sizes = LlamaConfig(
        hidden_size=shape.hidden, intermediate_size=shape.intermediate, num_hidden_layers=layers,
        num_attention_heads=128 if layers == 126 else 64, num_key_value_heads=8, vocab_size=shape.vocab,
    )  # fmt: skip
    with torch.device("meta"):
        model = LlamaForCausalLM(sizes)
    assert shape.parameters() == sum(parameter.numel() for parameter in model.parameters())
    share = 0
    for name, parameter in model.named_parameters():
        if "_proj" in name:  # in 4 bits: a column of 16-bit numbers; its scales stay whole
            share += 2 * -(-parameter.numel() // 4 // shards) + parameter.numel() // 64 + 4 * parameter.numel() // 16384
        else:
            share += 2 * -(-parameter.shape[0] // shards) * parameter[0].numel()
    parts = memory.training_cuda(shape, TrainSettings(), four_bit=True, unsloth=False, shards=shards)
    assert parts["weights"] == pytest.approx(share, rel=1e-4)
    assert memory.total(parts) < 80e9
