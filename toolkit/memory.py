"""Memory of a training step and of an export, computed from the base's shape, and the training plan that fits a card.

All sizes are bytes. What was measured rather than derived is a constant in capitals with the measurement beside it.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from toolkit.config import TrainSettings
from toolkit.console import size
from toolkit.shape import Shape

Parts = dict[str, int]

# Resident after a training step of a model of 0.1 M parameters (2 cores, Linux, glibc 2.36, torch 2.14, transformers
# 5.17, peft 0.21).
LIBRARIES = 1_020_000_000
CUDA_CONTEXT = 700_000_000  # on the card: context, cuBLAS and kernels; from NVIDIA's and bitsandbytes' users
# glibc cannot reuse every hole between the aligned blocks that torch asks for: activations take this much of what is
# alive, by the bytes of a number. Measured (135 M parameters, 512 to 2,048 tokens a pass): 1.54 in bf16, 1.93 in
# float32. Where layers are computed again little is alive, and it is 3.2 of that, in bf16 1.9 to 3.3 by the machine.
HEAP = {2: 1.55, 4: 1.95}
HEAP_RECOMPUTED = {2: 2.6, 4: 3.2}
# What is left of Unsloth's published longest contexts (Llama-3.1-8B, rank 32, batch 1, cards of 8 to 80 GB) after all
# that is computed here; their 227 kB a token are `layer_activations` of one layer.
UNSLOTH_LOGITS = 600_000_000
# An export of 1.5 and of 8.0 billion weights with a vocabulary of 128,256 tokens to three quantizations took 761 MB on
# two cores (benchmarks/export.py): this much, and blocks in work.
EXPORT = 680_000_000
EXPORT_BLOCKS = 1 << 24
NF4 = 0.5 + 1 / 64 + 4 / (64 * 256)  # bytes a weight: 4 bits, an 8-bit absmax per 64, a float32 per 256 of those
LOGITS = 512  # positions whose logits stand in memory at once, where the loss is ours (`train/loss.py`)
# A layer's backward pass takes this much of what the layer keeps, beside it: an H100 with PEFT took 12.6 GB (12,076
# tokens, recomputed), 74.8 and 41.8 GB (9,657 and 4,071, kept), where 12.5, 78.6 and 43.3 are computed.
BACKWARD = 0.25
GATHERED = 3  # layers that a card holds whole where FSDP divides them: at work, being fetched, and being put together
USABLE = 0.96  # of a card's free memory: what torch's allocator cannot fill because of its blocks' sizes
SPARE = 1.25  # of a whole record must fit where another way needs less: it cannot be halved if that was computed amiss
# Tokens of a pass on a card: on an H100 two of 9,500 took as long as one of 19,000, in 50 GB where it took 84.
ENOUGH = 16_384
# Tokens of a pass for which there must be room beside dequantized weights: from here on a larger pass gains less than
# they do. On an H100 a step of 2,700 tokens is 8 % faster with them, one of two passes of 10,000 2 %.
BESIDE_DEQUANTIZED = 4_096


def total(parts: Mapping[str, int]) -> int:
    """Add the parts up."""
    return sum(parts.values())


def export(whole: int, cores: int) -> Parts:
    """Return the peak of an export; `whole` are the bytes of the largest tensor that does not go in blocks of rows."""
    return {"libraries": EXPORT, "blocks": EXPORT_BLOCKS * (2 * cores + 1), "whole tensor": whole}


def layer_activations(shape: Shape, targets: list[str], width: int, *, copied: bool) -> int:
    """Return what one layer of transformers + PEFT keeps for the backward pass, per token.

    `width` is 2 under bf16 or f16 autocast, else 4. Two float32 residuals (each RMSNorm keeps its input); queries, keys
    and values repeated to all heads, and the attention's output; gate, its activation, and up; and the input of each
    LoRA pair: autocast copies it for each that is in float32, while without it (`copied` is False) pairs behind the
    same norm share it. Rank-wide tensors are left out.
    """
    inputs = {name: size[0] for name, size in shape.linears().items() if name in targets}
    if not copied:
        after_norms = [name for name in inputs if name not in ("o_proj", "down_proj")]
        shared = {"gate" if name.startswith(("gate", "up")) else "attention" for name in after_norms}
        adapters = width * (len(shared) * shape.hidden + inputs.get("down_proj", 0))
    else:
        adapters = width * sum(inputs.values())
    return 8 * shape.hidden + width * (4 * shape.query + 3 * shape.intermediate) + adapters


def unsloth_activations(shape: Shape) -> int:
    """Return what one layer of Unsloth keeps for the backward pass without checkpointing, per token, in 16 bits.

    The residual and two inputs of norms; queries before and after their rotation and the attention's output, keys and
    values; gate and up, of which the rest is computed again. Measured: Llama-3.1-8B takes 3.585 MB a token with one
    attention kernel for all records (60.77 less 33.42 GiB for 8,192 tokens more); these are 3.539.
    """
    return 2 * (3 * shape.hidden + 3 * shape.query + 2 * shape.key_value + 2 * shape.intermediate)


def adapter(shape: Shape, settings: TrainSettings, moments: int) -> int:
    """Return float32 weights, gradients and Adam's moments (`moments` bytes a parameter) of the adapter."""
    return shape.trainable(settings.lora_targets, settings.lora_r) * (4 + 4 + moments)


def logits(shape: Shape, count: int) -> int:
    """Return what our loss holds: a piece of the logits in 16 bits, its float32 copy, log-softmax and gradient."""
    return 14 * min(count, LOGITS) * shape.vocab


def training_cpu(
    shape: Shape, settings: TrainSettings, *, bf16: bool, tokens: int | None = None, checkpointing: bool | None = None
) -> Parts:
    """Return the peak of one step on a CPU: float32 base weights, adapter, and `tokens` in a forward pass.

    Autocast keeps a bf16 copy of each frozen weight until the backward pass has used it. By default the tokens are
    `batch_size` records of `max_length`, and checkpointing is as set.
    """
    count = settings.batch_size * settings.max_length if tokens is None else tokens
    width = 2 if bf16 else 4
    layer = layer_activations(shape, settings.lora_targets, width, copied=bf16) * count
    if settings.gradient_checkpointing is True if checkpointing is None else checkpointing:
        # Each layer's input; and one layer at a time in full, with as much again for its gradients.
        kept = HEAP_RECOMPUTED[width] * (shape.layers * 4 * shape.hidden * count + 2 * layer)
        copies = shape.linear_weights() // shape.layers
    else:
        kept, copies = HEAP[width] * shape.layers * layer, shape.linear_weights()
    return {
        "libraries": LIBRARIES,
        "weights": 4 * shape.parameters(),
        "bf16 copies": 2 * (copies + shape.table()) if bf16 else 0,
        "adapter": adapter(shape, settings, 8),
        "activations": int(kept),
        "logits": logits(shape, count),
    }


def weights_cuda(shape: Shape, *, four_bit: bool, offloaded: bool = False) -> int:
    """Return the base's weights on a card: nf4 with double quantization for the layers, else 16 bits.

    `offloaded`: the input embeddings stand in the machine's memory, where no output head shares them.
    """
    rest = shape.parameters() - shape.linear_weights()
    away = 2 * shape.table() if offloaded and not shape.tied else 0
    return (int(NF4 * shape.linear_weights()) if four_bit else 2 * shape.linear_weights()) + 2 * rest - away


def training_cuda(
    shape: Shape,
    settings: TrainSettings,
    *,
    four_bit: bool,
    unsloth: bool,
    tokens: int | None = None,
    checkpointing: bool | None = None,
    offloaded: bool = False,
    shards: int = 1,
) -> Parts:
    """Return the peak of one step on a CUDA card in 16-bit autocast, for `tokens` in a forward pass.

    With checkpointing each layer's input is kept (Unsloth moves it to the machine's memory) and one layer at a time in
    full. One layer's weights are dequantized at a time. `shards` cards divide weights and adapter by FSDP, and each
    holds a few layers whole, or the output head. By default the tokens are `batch_size` records of `max_length`, and
    checkpointing is as set, on where it is left to the plan.
    """
    count = settings.batch_size * settings.max_length if tokens is None else tokens
    layer = layer_activations(shape, settings.lora_targets, 2, copied=unsloth) * count
    recomputed = settings.gradient_checkpointing is not False if checkpointing is None else checkpointing
    dequantized = 2 * max(inputs * outputs for inputs, outputs in shape.linears().values()) if four_bit else 0
    moments = 2 if settings.optimizer == "adamw_8bit" and shards == 1 else 8
    parts = {
        "context": CUDA_CONTEXT,
        "weights": weights_cuda(shape, four_bit=four_bit, offloaded=offloaded) // shards,
        "adapter": adapter(shape, settings, moments) // shards,
    }
    if shards == 1:
        parts["adapter in 16 bits"] = 4 * shape.trainable(settings.lora_targets, settings.lora_r)  # and its gradients
    else:
        parts["whole layers"] = int(GATHERED * shape.linear_weights() // shape.layers * (NF4 if four_bit else 2))
    if unsloth:
        kept = layer if recomputed else shape.layers * unsloth_activations(shape) * count + layer
        return {**parts, "activations": kept + dequantized, "logits": UNSLOTH_LOGITS}
    backward = int((1 + BACKWARD if recomputed else BACKWARD) * layer) + dequantized
    head = logits(shape, count) + 8 * count * shape.hidden + (2 * shape.table() if shards > 1 else 0)
    return {
        **parts,
        "activations": shape.layers * (2 * shape.hidden * count if recomputed else layer),
        "backward pass of a layer, or logits": max(backward, head),
    }


@dataclass(frozen=True)
class Machine:
    """What trains: the device's free bytes before anything is loaded (None: unknown), and by which library.

    `shards` is the number of devices over which FSDP divides the model.
    """

    free: int | None
    cuda: bool
    unsloth: bool
    four_bit: bool
    bf16: bool
    shards: int = 1


@dataclass(frozen=True)
class Way:
    """How a step spends memory or spares it; the numbers are the same.

    `checkpointing`: activations are computed again in the backward pass. `offloaded`: the input embeddings stay in the
    machine's memory, and only the rows of a pass come to the card. `dequantized`: the values of 4-bit weights are
    written out in 16 bits once, at loading, instead of in every pass.
    """

    checkpointing: bool
    offloaded: bool = False
    dequantized: bool = False


@dataclass(frozen=True)
class Plan:
    """How a step is computed: at most `tokens` in one forward pass (always whole records), in one way.

    A step's records stay batch_size × accumulation whatever the plan, so it changes memory and speed, not the result.
    `estimate` is the computed peak of the device's memory, the CUDA context left out; None where it is unknown. It is
    that of `largest` tokens in a forward pass, where the records' lengths are known, else of `tokens`.
    """

    tokens: int
    records: int
    way: Way
    reason: str
    estimate: int | None
    fits: bool = True
    largest: int | None = None

    def halved(self, tokens: int, records: int) -> "Plan | None":
        """Return the plan after a forward pass of that size ran out of memory; None where it held one record only."""
        return replace(self, tokens=tokens // 2) if records > 1 else None


def peak(shape: Shape, settings: TrainSettings, machine: Machine, tokens: int, way: Way) -> Parts:
    """Return the peak of a step with `tokens` in one forward pass on this machine.

    On a card the CUDA context is left out: free memory is asked for when there is one, and torch does not count it.
    """
    if machine.cuda:
        parts = training_cuda(
            shape,
            settings,
            four_bit=machine.four_bit and not way.dequantized,
            unsloth=machine.unsloth,
            tokens=tokens,
            checkpointing=way.checkpointing,
            offloaded=way.offloaded,
            shards=machine.shards,
        )
        return {name: count for name, count in parts.items() if name != "context"}
    return training_cpu(shape, settings, bf16=machine.bf16, tokens=tokens, checkpointing=way.checkpointing)


def plan(shape: Shape | None, settings: TrainSettings, machine: Machine, workers: int = 1) -> Plan:
    """Choose how much goes into one forward pass, and in which way it is computed, from the free memory.

    Without checkpoints a step takes 4 FLOP a parameter and token instead of 6, so they are left out where a whole
    record of `max_length` still fits, unless the settings decide. Where it does not fit with them either, Unsloth can
    leave the input embeddings in the machine's memory; where there is much room, 4-bit weights are dequantized once. A
    forward pass never needs more than one worker's share of a step, nor, on a card, more than ENOUGH tokens.
    """
    longest = settings.max_length
    share = math.ceil(settings.batch_size * settings.accumulation / workers)
    records = share if settings.packing else min(settings.batch_size, share)
    most = records * longest if not settings.packing else min(share * longest, max(ENOUGH, longest))
    if not machine.cuda:
        # A CPU gains nothing from wide passes: what the settings call a batch is what stands in memory at once.
        most = min(most, settings.batch_size * longest)
    wanted = settings.gradient_checkpointing
    if shape is None or machine.free is None:
        unknown = (
            "what this base takes on a device is unknown"
            if shape is None
            else "this system does not tell how much memory is free"
        )
        tokens = min(most, settings.batch_size * longest)
        return Plan(tokens, records, Way(wanted is not False), f"{unknown}: the settings' own batch", None)
    room = int(machine.free * (USABLE if machine.cuda else 1))
    ways = _ways(shape, machine, wanted, workers)
    for way in ways:
        tokens = _most_tokens(shape, settings, machine, way, most, room)
        spare = 1 if way == ways[-1] else SPARE
        least = max(spare * longest, BESIDE_DEQUANTIZED if way.dequantized else 0)
        if tokens >= min(least, most):
            need = total(peak(shape, settings, machine, tokens, way))
            return Plan(tokens, records, way, _why(machine, wanted, way.checkpointing), need)
    need = total(peak(shape, settings, machine, longest, ways[-1]))
    reason = f"one record of {longest:,} tokens takes {size(need)}, {size(room)} of {size(machine.free)} can be used"
    return Plan(longest, 1, ways[-1], reason, need, fits=False)


def _ways(shape: Shape, machine: Machine, checkpointing: object, workers: int) -> list[Way]:
    """Return the ways that this machine has, the fastest first; `checkpointing` as the settings have it."""
    ways = [Way(False), Way(True)] if checkpointing == "auto" else [Way(bool(checkpointing))]
    if machine.cuda and machine.four_bit and machine.shards == 1:
        ways.insert(0, replace(ways[0], dequantized=True))
    if machine.cuda and machine.unsloth and not shape.tied and workers == 1:
        ways.append(replace(ways[-1], offloaded=True))
    return ways


def of_records(plan: Plan, shape: Shape | None, settings: TrainSettings, machine: Machine, largest: int) -> Plan:
    """Return the plan with its estimate for the largest forward pass that these records will make, in tokens."""
    if shape is None or plan.estimate is None:
        return plan
    need = total(peak(shape, settings, machine, largest, plan.way))
    return replace(plan, largest=largest, estimate=need)


def _most_tokens(shape: Shape, settings: TrainSettings, machine: Machine, way: Way, most: int, room: int) -> int:
    """Return the most tokens, up to `most`, whose forward and backward pass fits into `room` bytes."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if total(peak(shape, settings, machine, middle, way)) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _why(machine: Machine, wanted: object, checkpointing: bool) -> str:
    free = f"{size(machine.free or 0)} free"
    if wanted != "auto":
        return f"{free}; train.gradient_checkpointing is set to {str(checkpointing).lower()}"
    if checkpointing:
        return f"{free}: activations are recomputed, because a whole record does not fit with all of them kept"
    return f"{free}: all activations fit, so none are recomputed"


def describe(plan: Plan, settings: TrainSettings, workers: int = 1) -> str:
    """Say the plan in one line."""
    share = math.ceil(settings.batch_size * settings.accumulation / workers)
    step = f"{settings.batch_size * settings.accumulation} records a step"
    if workers > 1:
        step += f", {share} on each of {workers} devices"
    if settings.packing:
        how = f"packed into forward passes of up to {plan.tokens:,} tokens"
        how += "" if plan.largest is None else f" (these records make {plan.largest:,} at most)"
    else:
        how = f"{plan.records} to a forward pass, without padding"
    memory = "" if plan.estimate is None else f", {size(plan.estimate)} computed"
    ways = "with checkpointing" if plan.way.checkpointing else "without checkpointing"
    ways += ", the embeddings in main memory" if plan.way.offloaded else ""
    ways += ", the 4-bit weights dequantized once" if plan.way.dequantized else ""
    return f"plan: {step}, {how}, {ways}{memory} ({plan.reason})"
