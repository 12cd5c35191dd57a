"""The training loop: one step after the other, each recorded, checked, and repeatable from the last checkpoint."""

import gc
import math
import time
from dataclasses import dataclass
from typing import Any

from toolkit import console
from toolkit.errors import ToolkitError
from toolkit.train import batches, checkpoints, schedule
from toolkit.train.batches import Batch
from toolkit.train.checkpoints import Checkpoint
from toolkit.train.evaluate import held_out_loss
from toolkit.train.examples import Example
from toolkit.train.job import Job
from toolkit.train.sharding import Whole

MAX_NORM = 1.0  # the recipe's trainer clips the gradient to this norm


@dataclass(frozen=True)
class Step:
    """What one step computed: its loss (nats per learned token), gradient norm, tokens, and rows of its records."""

    loss: float
    norm: float
    tokens: int
    rows: list[int]


def fit(job: Job, resume: Checkpoint | None) -> int:
    """Train from a checkpoint, or from the start, to the last step; return the last step done.

    Ends early after Ctrl-C (`job.interruption.requested`), with a checkpoint, or where the held-out loss stopped
    falling. Raises ToolkitError where loss or gradient are not finite.
    """
    settings = job.config.train
    first = _begin(job, resume)
    if job.sides["val"] and job.workers.say(job.log.held_out(0)) is None:
        job.log.add({"step": 0, "held_out_loss": held_out_loss(job, job.sides["val"], "held-out loss before")})
    cuda = job.backend.device == "cuda"
    step = first
    with console.progress("training", settings.steps, "steps") as progress:
        progress.skip_to(first)
        for step in range(first + 1, settings.steps + 1):
            began = time.monotonic()
            rate = schedule.learning_rate(settings, step - 1)
            done = _step(job, step, rate)
            elapsed = time.monotonic() - began
            job.tokens += done.tokens
            job.seen_here += done.tokens
            job.seconds += elapsed
            entry = {"step": step, "loss": done.loss, "grad_norm": done.norm, "learning_rate": rate}
            entry |= {"tokens": job.tokens, "tokens_per_second": round(done.tokens / max(1e-9, elapsed), 1)}
            if cuda:
                entry["memory"] = _peak(job)
            job.log.add(entry)
            progress.advance(note=_note(job, done, rate))
            job.interruption.requested = job.workers.highest([float(job.interruption.requested)])[0] > 0
            stop = job.interruption.requested and step < settings.steps
            evaluated = False
            if not stop and evaluation_due(step, job):
                evaluated = True
                loss = evaluate(job, step)
                stop = _stalled(job, step, loss)
            if not evaluated and (stop or step % settings.save_steps == 0) and step < settings.steps:
                save(job, step)
            if stop:
                break
    return step


def _begin(job: Job, resume: Checkpoint | None) -> int:
    """Bring model, optimizer and random numbers to where they were, and return the step that is done."""
    import torch

    settings = job.config.train
    cuda = job.backend.device == "cuda"
    adapter, state = checkpoints.read(resume) if resume else ({}, {})
    job.workers.equalize(job.model.parameters())

    def make(parameters: list[Any]) -> Any:
        return schedule.optimizer(parameters, settings, cuda=cuda, quiet=not job.workers.first)

    job.whole = Whole.of(job.model, make, job.workers, adapter, state.get("optimizer"))
    job.model, job.optimizer = job.whole.model, job.whole.optimizer
    job.model.train()
    if resume is None:
        torch.manual_seed(settings.seed + job.workers.rank)
        return 0
    job.precision.restore(state["precision"])
    generators = state["random"]
    if job.workers.rank < len(generators):
        torch.set_rng_state(generators[job.workers.rank]["cpu"])
        if cuda and "cuda" in generators[job.workers.rank]:
            torch.cuda.set_rng_state(generators[job.workers.rank]["cuda"], job.device)
    job.tokens = resume.tokens
    return resume.step


def save(job: Job, step: int, loss: float | None = None) -> None:
    """Write a checkpoint of the step that is done."""
    import torch

    random = {"cpu": torch.get_rng_state()}
    if job.backend.device == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(job.device)
    generators = job.workers.gather(random)
    adapter, optimizer = job.whole.state()
    state = {"optimizer": optimizer, "precision": job.precision.state(), "random": generators}
    if job.workers.first:
        checkpoints.write(job.folder.checkpoints, job.fingerprint, step, job.tokens, adapter, state, loss)
    job.workers.say(None)  # nobody runs ahead of a checkpoint that is being written


def _step(job: Job, step: int, rate: float) -> Step:
    """Compute one step's gradient, in as many forward passes as memory demands, and let the optimizer take it."""
    settings, train = job.config.train, job.sides["train"]
    places = batches.of_step(step - 1, settings.batch_size * settings.accumulation, len(train), settings.seed)
    records = [train[place] for place in places]
    rows = [record.row for record in records]
    while True:
        passes = _passes(job, records)
        sums, failed = _accumulate(job, records, passes)
        worst = job.workers.highest([float(value) for value in failed])
        if not worst[0]:
            break
        _shrink(job, step, int(worst[0]), int(worst[1]))
    job.whole.gather(job.workers)
    norm = job.precision.clip(job.whole, job.optimizer, MAX_NORM)
    loss = job.workers.sums([sum(sums)])[0]
    if not math.isfinite(loss) or not (math.isfinite(norm) or job.precision.may_overflow()):
        bad = [row for row, value in zip(passes, sums, strict=True) if not math.isfinite(value)]
        suspects = [records[place].row for members in bad for place in members] or rows
        suspects = sorted(
            {row for found in job.workers.gather(suspects if bad or math.isfinite(loss) else []) for row in found}
        )
        listed = ", ".join(str(row) for row in suspects)
        raise ToolkitError(
            f"step {step}: the loss is {loss}, the gradient norm {norm}; the batch holds rows {listed}",
            hint="look at these rows, or lower `train.learning_rate`; the last checkpoint before it is kept",
            details={"step": step, "rows": suspects},
        )
    for group in job.optimizer.param_groups:
        group["lr"] = rate
    job.precision.step(job.optimizer)
    job.whole.zero()
    return Step(loss, norm, sum(len(record.input_ids) for record in records), rows)


def _passes(job: Job, records: list[Example]) -> list[list[int]]:
    """Lay a step's records into this worker's forward passes; all workers have as many."""
    lengths = [len(record.input_ids) for record in records]
    plan, workers = job.plan, job.workers
    passes = batches.lay_out(lengths, plan.tokens, plan.records, workers.count)
    return passes[workers.rank :: workers.count]


def _accumulate(job: Job, records: list[Example], passes: list[list[int]]) -> tuple[list[float], tuple[int, int]]:
    """Run forward and backward over a step's passes; the gradients add up to that of the step's mean loss.

    Returns each pass's share of the mean loss, and the size (tokens, records) of the pass that ran out of memory, or
    (0, 0).
    """
    import torch

    total = max(1, sum(record.learned for record in records))
    # FSDP takes the mean over the workers, where all else adds up.
    scale = job.workers.count if job.workers.sharded else 1
    normal = torch.tensor(float(total) / scale, device=job.device)
    losses = []
    for members in passes:
        chosen = [records[place] for place in members] or [batches.silent(records[0])]
        batch: Batch | None = None
        try:
            batch = job.collate(chosen)
            with job.precision.autocast():
                loss = job.backend.loss(job.model, batch, normal)
            job.precision.backward(loss)
            losses.append(loss.detach() / scale)
            continue
        except RuntimeError as exc:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(exc) or job.workers.sharded:
                raise
        del batch  # outside the handler: the exception's frames hold what has to go
        loss = None
        return [], (sum(len(record.input_ids) for record in chosen), len(chosen))
    return torch.stack([loss.float() for loss in losses]).tolist(), (0, 0)


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


def evaluation_due(step: int, job: Job) -> bool:
    """Tell whether the held-out loss is wanted after a step: every eval_steps, and after the last one."""
    settings = job.config.train
    if not job.sides["val"]:
        return False
    return step == settings.steps or (settings.eval_steps > 0 and step % settings.eval_steps == 0)


def evaluate(job: Job, step: int) -> float:
    """Take the held-out loss after a step and log it; the best one so far comes with a checkpoint."""
    last = step == job.config.train.steps
    loss = held_out_loss(job, job.sides["val"], "held-out loss after" if last else f"held-out loss at step {step}")
    former = [entry["held_out_loss"] for entry in job.log.held_out_entries() if entry["step"] > 0]
    job.log.add({"step": step, "held_out_loss": loss})
    settings = job.config.train
    if settings.eval_steps and loss < min(former, default=math.inf):
        save(job, step, loss)
    elif step % settings.save_steps == 0:
        save(job, step)
    return loss


def _stalled(job: Job, step: int, loss: float) -> bool:
    """Tell whether the last `early_stopping` held-out losses are no better than the best before them, and say so."""
    patience = job.config.train.early_stopping
    losses = [entry["held_out_loss"] for entry in job.log.held_out_entries() if entry["step"] > 0]
    if not patience or len(losses) <= patience or step == job.config.train.steps:
        return False
    before, since = min(losses[:-patience]), losses[-patience:]
    if min(since) < before:
        return False
    if job.workers.first:
        console.say(
            f"early stopping after step {step}: {patience} held-out losses in a row are no better than {before:.4f}"
        )
    return True


def _peak(job: Job) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated(job.device))


def _note(job: Job, done: Step, rate: float) -> str:
    speed = job.seen_here / max(1e-9, job.seconds)
    parts = [f"loss {done.loss:.3f}", f"grad {done.norm:.2f}", f"lr {rate:.1e}", f"{speed:,.0f} tokens/s"]
    if job.backend.device == "cuda":
        parts.append(console.size(_peak(job)))
    return "  ".join(parts)
