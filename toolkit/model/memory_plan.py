"""The training plan that fits a device: the micro-batch, and how a step saves or spends memory."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

from toolkit.core.console import size
from toolkit.core.errors import ToolkitError
from toolkit.core.train_settings import TrainSettings
from toolkit.model import memory
from toolkit.model.memory import Parts, total
from toolkit.model.model_config import ModelConfig

USABLE = 0.96  # of a GPU's free memory: what torch's allocator cannot fill because of its blocks' sizes
HEADROOM = 1.25  # of a complete record must fit if another way needs less: it cannot be halved if the estimate is wrong
# Tokens of a micro-batch on a GPU: on an H100 two of 9,500 took as long as one of 19,000, in 50 GB where it took 84.
MAX_TOKENS = 16_384
# Tokens that must fit next to dequantized weights: from here on a larger micro-batch gains less than they
# do. On an H100 a step of 2,700 tokens is 8 % faster with them, one of two micro-batches of 10,000 2 %.
MIN_TOKENS_WITH_DEQUANTIZED = 4_096


@dataclass(frozen=True)
class Device:
    """The device that trains: its free bytes before anything is loaded (None: unknown), and the library.

    `processes` train together, one per GPU; FSDP divides the model over `shards` of them. `fp8`: the GPU was proven to
    multiply frozen weights in FP8, and may do so.
    """

    free: int | None
    cuda: bool
    unsloth: bool
    four_bit: bool
    bf16: bool
    shards: int = 1
    processes: int = 1
    fp8: bool = False


@dataclass(frozen=True)
class Strategy:
    """How a step spends or saves memory; the results are the same, but with `fp8`.

    `checkpointing`: activations are computed again in the backward pass. `offloaded`: the input embeddings stay in main
    memory, and only the rows of a micro-batch come to the GPU. `dequantized`: the values of 4-bit weights are written
    out in 16 bits once, at loading, instead of in every pass. `fp8`: frozen weights are kept in e4m3, by rows and by
    columns, which takes the memory of one 16-bit copy.
    """

    checkpointing: bool
    offloaded: bool = False
    dequantized: bool = False
    fp8: bool = False


@dataclass(frozen=True)
class MemoryPlan:
    """How a step is computed: `micro_batch` records on each of `processes` at once, `accumulation` times.

    The records of a step are the settings' own, so the plan changes memory and speed, not the result. `tokens` are
    those of the largest micro-batch. `estimate` is the computed peak of the device's memory, without the CUDA context;
    None where it is unknown.
    """

    micro_batch: int
    accumulation: int
    processes: int
    tokens: int
    strategy: Strategy
    reason: str
    estimate: int | None
    fits: bool = True


def peak(shape: ModelConfig, settings: TrainSettings, device: Device, tokens: int, strategy: Strategy) -> Parts:
    """Return the peak of a step with `tokens` in one micro-batch on this device.

    On a GPU the CUDA context is left out: free memory is asked for when there is one, and torch does not count it.
    """
    if device.cuda:
        parts = memory.training_cuda(
            shape,
            settings,
            four_bit=device.four_bit and not (strategy.dequantized or strategy.fp8),
            unsloth=device.unsloth,
            tokens=tokens,
            checkpointing=strategy.checkpointing,
            offloaded=strategy.offloaded,
            shards=device.shards,
        )
        return {name: count for name, count in parts.items() if name != "context"}
    return memory.training_cpu(shape, settings, bf16=device.bf16, tokens=tokens, checkpointing=strategy.checkpointing)


def plan(
    shape: ModelConfig | None,
    settings: TrainSettings,
    device: Device,
    *,
    tokens_of: Callable[[int], int] | None = None,
    at_most: int = 0,
) -> MemoryPlan:
    """Choose the micro-batch and the way of computing from the free memory.

    `tokens_of` returns the tokens of the largest micro-batch of N records; by default every record has max_length.
    `at_most` bounds the records, after memory ran out. Without checkpointing a step takes 4 FLOP per parameter and
    token instead of 6, so it is left out where the longest record fits without, unless the settings decide. Raises
    ToolkitError where the processes cannot share a step's records evenly.
    """
    share = share_of(settings, device.processes)
    tokens_of = tokens_of or (lambda records: records * settings.max_length)
    sizes = [records for records in range(share, 0, -1) if share % records == 0]
    if not settings.packing:
        sizes = [records for records in sizes if records <= settings.batch_size]

    def made(strategy: Strategy, most: int, reason: str, *, fits: bool = True) -> MemoryPlan:
        allowed = (records for records in sizes if not at_most or records <= at_most)
        records = next((records for records in allowed if tokens_of(records) <= most), 1)
        tokens = tokens_of(records)
        need = None if shape is None or device.free is None else total(peak(shape, settings, device, tokens, strategy))
        return MemoryPlan(records, share // records, device.processes, tokens, strategy, reason, need, fits)

    longest, wanted = tokens_of(1), settings.gradient_checkpointing
    own = settings.batch_size * longest
    if shape is None or device.free is None:
        unknown = (
            "the memory that this base needs is unknown"
            if shape is None
            else "the free memory of this system is unknown"
        )
        return made(Strategy(wanted is not False), own, f"{unknown}, so the batch is as set")
    room = int(device.free * (USABLE if device.cuda else 1))
    # A CPU gains nothing from wide passes: the settings' batch size is what is in memory at once.
    # `at_most` does not count here: the way of computing that ran out of memory must not be replaced by a larger one.
    most = min(max(MAX_TOKENS, longest) if device.cuda else own, tokens_of(sizes[0]))
    ways = _strategies(shape, device, settings)
    for strategy in ways:
        tokens = _most_tokens(shape, settings, device, strategy, most, room)
        headroom = 1 if strategy == ways[-1] else HEADROOM
        spared = strategy.dequantized and not ways[-1].dequantized
        least = max(headroom * longest, MIN_TOKENS_WITH_DEQUANTIZED if spared else 0)
        if tokens >= min(least, most):
            return made(strategy, tokens, _why(device, wanted, strategy.checkpointing))
    need = total(peak(shape, settings, device, longest, ways[-1]))
    reason = (
        f"one record of {longest:,} tokens takes {size(need)}, but only {size(room)} of {size(device.free)} can be used"
    )
    return made(ways[-1], 0, reason, fits=False)


def share_of(settings: TrainSettings, processes: int) -> int:
    """Return the records of a step that each process takes; raises ToolkitError if they cannot be shared evenly."""
    records = settings.records_a_step
    if records % processes:
        multiple = processes // math.gcd(processes, settings.batch_size)
        nearest = multiple * max(1, round(settings.gradient_accumulation_steps / multiple))
        raise ToolkitError(
            f"{processes} processes cannot share the {records} records of a step evenly",
            hint=f"batch_size × gradient_accumulation_steps must be a multiple of {processes}, for example with "
            f"--set train.gradient_accumulation_steps={nearest}",
        )
    return records // processes


def _strategies(shape: ModelConfig, device: Device, settings: TrainSettings) -> list[Strategy]:
    """Return the ways that this device has, the fastest first; of FP8 alone if the settings demand it."""
    checkpointing = settings.gradient_checkpointing
    ways = [Strategy(False), Strategy(True)] if checkpointing == "auto" else [Strategy(bool(checkpointing))]
    quantized = [replace(way, dequantized=device.four_bit, fp8=True) for way in ways]
    if device.fp8 and settings.base_compute == "fp8":
        ways = quantized
    elif device.fp8:
        ways.insert(0, quantized[0])
    elif device.cuda and device.four_bit and device.shards == 1:
        ways.insert(0, replace(ways[0], dequantized=True))
    if device.cuda and device.unsloth and not shape.tied and device.processes == 1:
        ways.append(replace(ways[-1], offloaded=True))
    return ways


def _most_tokens(
    shape: ModelConfig, settings: TrainSettings, device: Device, strategy: Strategy, most: int, room: int
) -> int:
    """Return the most tokens, up to `most`, whose forward and backward pass fits into `room` bytes."""
    low, high = 0, most
    while low < high:
        middle = (low + high + 1) // 2
        if total(peak(shape, settings, device, middle, strategy)) <= room:
            low = middle
        else:
            high = middle - 1
    return low


def _why(device: Device, wanted: object, checkpointing: bool) -> str:
    free = f"{size(device.free or 0)} free"
    if wanted != "auto":
        return f"{free}; train.gradient_checkpointing is set to {str(checkpointing).lower()}"
    if checkpointing:
        return f"{free}: activations are recomputed, because a whole record does not fit with all of them kept"
    return f"{free}: all activations fit, so none are recomputed"


def describe_plan(chosen: MemoryPlan) -> str:
    """Say the plan in one line."""
    share = chosen.micro_batch * chosen.accumulation
    step = f"{share * chosen.processes} records a step"
    if chosen.processes > 1:
        step += f", {share} on each of {chosen.processes} devices"
    how = f"in {chosen.accumulation} micro-batch{'es' if chosen.accumulation > 1 else ''} of {chosen.micro_batch}"
    how += f", {chosen.tokens:,} tokens at most"
    estimate = "" if chosen.estimate is None else f", {size(chosen.estimate)} computed"
    ways = "with checkpointing" if chosen.strategy.checkpointing else "without checkpointing"
    ways += ", the embeddings in main memory" if chosen.strategy.offloaded else ""
    ways += ", the 4-bit weights dequantized once" if chosen.strategy.dequantized else ""
    ways += ", the frozen weights in FP8" if chosen.strategy.fp8 else ""
    return f"plan: {step}, {how}, {ways}{estimate} ({chosen.reason})"


def halved(micro_batch: int, share: int) -> int:
    """Return the next smaller micro-batch that divides a process's share of a step, at most half; 0 after one."""
    return next((records for records in range(micro_batch // 2, 0, -1) if share % records == 0), 0)
