"""One step: the gradient of its records, in as many forward passes as memory demands, and the optimizer's answer to it.

A step is launched and finished apart: while a card still computes one step, Python launches the next, so that the card
never waits for Python between two of them.
"""

import gc
import math
import time
from dataclasses import dataclass
from typing import Any

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.train import batches, schedule
from toolkit.train.batches import Batch
from toolkit.train.examples import Example
from toolkit.train.job import Job

MAX_NORM = 1.0  # the recipe's trainer clips the gradient to this norm


@dataclass(frozen=True)
class Moment:
    """A point in the work of a device: when it has done all that it was given to do before."""

    event: Any
    time: float

    @staticmethod
    def now(job: Job) -> "Moment":
        """Mark what the job's device has been given to do up to now."""
        if job.backend.device != "cuda":
            return Moment(None, time.monotonic())
        import torch

        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(job.device))
        return Moment(event, 0.0)

    def wait(self) -> None:
        """Wait until the device has come here."""
        if self.event is not None:
            self.event.synchronize()

    def since(self, earlier: "Moment") -> float:
        """Return the seconds between two moments that the device has come to."""
        return self.time - earlier.time if self.event is None else earlier.event.elapsed_time(self.event) / 1e3


@dataclass(frozen=True)
class Launched:
    """A step that the device may still be computing.

    `passes` are the indices of this worker's records in each forward pass; `values` will hold the passes' shares of the
    mean loss, and the gradient's norm, once the device has come to the moment `ended`. `lenient`: a norm that is not
    finite only makes the scale of f16 smaller.
    """

    number: int
    rate: float
    records: list[Example]
    passes: list[list[int]]
    values: Any
    lenient: bool
    ended: Moment


@dataclass(frozen=True)
class Finished:
    """What a launched step came to: its loss (nats per learned token), gradient norm, and tokens."""

    step: Launched
    loss: float
    norm: float
    tokens: int


def launch(job: Job, number: int) -> Launched:
    """Compute a step's gradient and let the optimizer take it, waiting for as little of it as can be."""
    import torch

    settings, train = job.config.train, job.sides["train"]
    places = batches.of_step(number - 1, settings.batch_size * settings.accumulation, len(train), settings.seed)
    records = [train[place] for place in places]
    while True:
        passes = _passes(job, records)
        losses, failed = _accumulate(job, records, passes)
        worst = job.workers.highest([float(value) for value in failed])
        if not worst[0]:
            break
        _shrink(job, number, int(worst[0]), int(worst[1]))
    job.whole.gather(job.workers)
    norm = job.precision.clip(job.whole, job.optimizer, MAX_NORM)
    values = torch.stack([value.detach().float().reshape(()) for value in (*losses, norm)])
    values = values.to("cpu", non_blocking=True)
    lenient = job.precision.may_overflow()
    rate = schedule.learning_rate(settings, number - 1)
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    job.precision.step(job.optimizer)
    job.whole.end_step()
    return Launched(number, rate, records, passes, values, lenient, Moment.now(job))


def finish(job: Job, step: Launched) -> Finished:
    """Wait for a step, and return what it came to; raises ToolkitError where loss or gradient are not finite."""
    step.ended.wait()
    *shares, norm = step.values.tolist()
    loss = job.workers.sums([sum(shares)])[0]
    if not math.isfinite(loss) or not (math.isfinite(norm) or step.lenient):
        _refuse(job, step, shares, loss, norm)
    tokens = sum(len(record.input_ids) for record in step.records)
    return Finished(step, loss, norm, tokens)


def _refuse(job: Job, step: Launched, shares: list[float], loss: float, norm: float) -> None:
    """Raise ToolkitError with the rows of the passes whose loss is not finite, or else of the whole step."""
    bad = [members for members, share in zip(step.passes, shares, strict=True) if not math.isfinite(share)]
    suspects = [step.records[place].row for members in bad for place in members]
    if not suspects and math.isfinite(loss):
        suspects = [record.row for record in step.records]
    rows = sorted({row for found in job.workers.gather(suspects) for row in found})
    raise ToolkitError(
        f"step {step.number}: the loss is {loss}, the gradient norm {norm}; the batch holds rows "
        + ", ".join(map(str, rows)),
        hint="look at these rows, or lower `train.learning_rate`; the last checkpoint before it is kept",
        details={"step": step.number, "rows": rows},
    )


def _passes(job: Job, records: list[Example]) -> list[list[int]]:
    """Lay a step's records into this worker's forward passes; all workers have as many."""
    lengths = [len(record.input_ids) for record in records]
    plan, workers = job.plan, job.workers
    passes = batches.lay_out(lengths, plan.tokens, plan.records, workers.count)
    return passes[workers.rank :: workers.count]


def _accumulate(job: Job, records: list[Example], passes: list[list[int]]) -> tuple[list[Any], tuple[int, int]]:
    """Run forward and backward over a step's passes; the gradients add up to that of the step's mean loss.

    Returns each pass's share of the mean loss, on the device, and the size (tokens, records) of the pass that ran out
    of memory, or (0, 0).
    """
    import torch

    total = max(1, sum(record.learned for record in records))
    # FSDP takes the mean over the workers, where all else adds up.
    scale = job.workers.count if job.workers.sharded else 1
    normal = torch.full((), float(total) / scale, device=job.device)
    losses = []
    for members in passes:
        chosen = [records[place] for place in members] or [batches.silent(records[0])]
        batch: Batch | None = None
        try:
            batch = job.collate(chosen)
            with job.precision.autocast():
                loss = job.backend.loss(job.model, batch, normal)
            job.precision.backward(loss)
            job.whole.end_pass()
            losses.append(loss.detach() / scale)
            continue
        except RuntimeError as exc:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(exc) or job.workers.sharded:
                raise
        del batch  # outside the handler: the exception's frames hold what has to go
        loss = None
        return [], (sum(len(record.input_ids) for record in chosen), len(chosen))
    return losses, (0, 0)


def is_out_of_memory(exc: BaseException) -> bool:
    """Tell whether torch, or a library on top of it, found no memory on the device."""
    import torch

    said = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or "out of memory" in said or "CUBLAS_STATUS_ALLOC_FAILED" in said


def _shrink(job: Job, step: int, tokens: int, records: int) -> None:
    """Halve the forward pass after memory ran out; the step is then computed again from its beginning."""
    import torch

    job.whole.zero()
    gc.collect()
    if job.backend.device == "cuda":
        torch.cuda.empty_cache()
    smaller = job.plan.halved(tokens, records)
    if smaller is None:
        raise ToolkitError(
            f"step {step}: out of memory with a single record of {tokens:,} tokens in the forward pass",
            hint="set train.gradient_checkpointing = true, lower `train.max_length`, or choose a smaller base",
        )
    job.plan = smaller
    job.out_of_memory += 1
    if job.workers.first:
        console.warn(
            f"step {step}: out of memory with {records} records of {tokens:,} tokens in one forward pass; the step is "
            f"done again with {smaller.tokens:,} at most, in twice as many passes: the same records, the same result"
        )
