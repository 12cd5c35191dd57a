"""The training loop: one step after the other, each recorded, checked, and repeatable from the last checkpoint."""

import gc
import math
import time
from dataclasses import dataclass, field
from typing import Any

from toolkit import console
from toolkit.config import Config
from toolkit.errors import ToolkitError
from toolkit.memory import Plan
from toolkit.run import RunFolder
from toolkit.train import batches, checkpoints, schedule
from toolkit.train.backend import Backend
from toolkit.train.batches import Batch
from toolkit.train.checkpoints import Checkpoint
from toolkit.train.evaluate import held_out_loss
from toolkit.train.examples import Example
from toolkit.train.interruption import Interruption
from toolkit.train.log import LogKeeper
from toolkit.train.precision import Precision
from toolkit.train.sharding import Whole
from toolkit.train.workers import Workers

MAX_NORM = 1.0  # the recipe's trainer clips the gradient to this norm


@dataclass
class Loop:
    """All that one run of the loop works with; `plan` shrinks when memory runs out, `model` is as it was loaded."""

    config: Config
    folder: RunFolder
    backend: Backend
    model: Any
    plan: Plan
    sides: dict[str, list[Example]]
    workers: Workers
    precision: Precision
    log: LogKeeper
    interruption: Interruption
    fingerprint: str
    tokens: int = 0
    seconds: float = 0.0
    seen_here: int = 0
    out_of_memory: int = 0
    last: Checkpoint | None = None
    whole: Whole = field(init=False)
    optimizer: Any = field(init=False)

    @property
    def device(self) -> Any:
        """The device of this worker."""
        return self.workers.device(self.backend.device)

    def collate(self, records: list[Example]) -> Batch:
        """Lay records out for one forward pass on this worker's device."""
        return batches.collate(
            records,
            self.device,
            padded=self.backend.padded(self.whole.inner),
            multiple=batches.ALIGNED if self.backend.device == "cuda" else 1,
        )


@dataclass(frozen=True)
class Step:
    """What one step computed: its loss (nats per learned token), gradient norm, tokens, and rows of its records."""

    loss: float
    norm: float
    tokens: int
    rows: list[int]


def fit(loop: Loop, resume: Checkpoint | None) -> int:
    """Train from a checkpoint, or from the start, to the last step; return the last step done.

    Ends early after Ctrl-C (`loop.interruption.requested`), with a checkpoint, or where the held-out loss stopped
    falling. Raises ToolkitError where loss or gradient are not finite.
    """
    settings = loop.config.train
    first = _begin(loop, resume)
    if loop.sides["val"] and loop.workers.say(loop.log.held_out(0)) is None:
        loop.log.add({"step": 0, "held_out_loss": held_out_loss(loop, loop.sides["val"], "held-out loss before")})
    cuda = loop.backend.device == "cuda"
    step = first
    with console.progress("training", settings.steps, "steps") as progress:
        progress.skip_to(first)
        for step in range(first + 1, settings.steps + 1):
            began = time.monotonic()
            rate = schedule.learning_rate(settings, step - 1)
            done = _step(loop, step, rate)
            elapsed = time.monotonic() - began
            loop.tokens += done.tokens
            loop.seen_here += done.tokens
            loop.seconds += elapsed
            entry = {"step": step, "loss": done.loss, "grad_norm": done.norm, "learning_rate": rate}
            entry |= {"tokens": loop.tokens, "tokens_per_second": round(done.tokens / max(1e-9, elapsed), 1)}
            if cuda:
                entry["memory"] = _peak(loop)
            loop.log.add(entry)
            progress.advance(note=_note(loop, done, rate))
            loop.interruption.requested = loop.workers.highest([float(loop.interruption.requested)])[0] > 0
            stop = loop.interruption.requested and step < settings.steps
            evaluated = False
            if not stop and evaluation_due(step, loop):
                evaluated = True
                loss = evaluate(loop, step)
                stop = _stalled(loop, step, loss)
            if not evaluated and (stop or step % settings.save_steps == 0) and step < settings.steps:
                save(loop, step)
            if stop:
                break
    return step


def _begin(loop: Loop, resume: Checkpoint | None) -> int:
    """Bring model, optimizer and random numbers to where they were, and return the step that is done."""
    import torch

    settings = loop.config.train
    cuda = loop.backend.device == "cuda"
    adapter, state = checkpoints.read(resume) if resume else ({}, {})
    loop.workers.equalize(loop.model.parameters())

    def make(parameters: list[Any]) -> Any:
        return schedule.optimizer(parameters, settings, cuda=cuda, quiet=not loop.workers.first)

    loop.whole = Whole.of(loop.model, make, loop.workers, adapter, state.get("optimizer"))
    loop.model, loop.optimizer = loop.whole.model, loop.whole.optimizer
    loop.model.train()
    if resume is None:
        torch.manual_seed(settings.seed + loop.workers.rank)
        return 0
    loop.precision.restore(state["precision"])
    generators = state["random"]
    if loop.workers.rank < len(generators):
        torch.set_rng_state(generators[loop.workers.rank]["cpu"])
        if cuda and "cuda" in generators[loop.workers.rank]:
            torch.cuda.set_rng_state(generators[loop.workers.rank]["cuda"], loop.device)
    loop.tokens, loop.last = resume.tokens, resume
    return resume.step


def save(loop: Loop, step: int, loss: float | None = None) -> None:
    """Write a checkpoint of the step that is done."""
    import torch

    random = {"cpu": torch.get_rng_state()}
    if loop.backend.device == "cuda":
        random["cuda"] = torch.cuda.get_rng_state(loop.device)
    generators = loop.workers.gather(random)
    adapter, optimizer = loop.whole.state()
    state = {"optimizer": optimizer, "precision": loop.precision.state(), "random": generators}
    if loop.workers.first:
        loop.last = checkpoints.write(
            loop.folder.checkpoints, loop.fingerprint, step, loop.tokens, adapter, state, loss
        )
    else:
        loop.last = Checkpoint(loop.folder.checkpoints / f"checkpoint-{step}", step, loop.tokens, loss)
    loop.workers.say(None)  # nobody runs ahead of a checkpoint that is being written


def _step(loop: Loop, step: int, rate: float) -> Step:
    """Compute one step's gradient, in as many forward passes as memory demands, and let the optimizer take it."""
    settings, train = loop.config.train, loop.sides["train"]
    places = batches.of_step(step - 1, settings.batch_size * settings.accumulation, len(train), settings.seed)
    records = [train[place] for place in places]
    rows = [record.row for record in records]
    while True:
        passes = _passes(loop, records)
        sums, failed = _accumulate(loop, records, passes)
        worst = loop.workers.highest([float(value) for value in failed])
        if not worst[0]:
            break
        _shrink(loop, step, int(worst[0]), int(worst[1]))
    loop.whole.gather(loop.workers)
    norm = loop.precision.clip(loop.whole, loop.optimizer, MAX_NORM)
    loss = loop.workers.sums([sum(sums)])[0]
    if not math.isfinite(loss) or not (math.isfinite(norm) or loop.precision.may_overflow()):
        bad = [row for row, value in zip(passes, sums, strict=True) if not math.isfinite(value)]
        suspects = [records[place].row for members in bad for place in members] or rows
        suspects = sorted(
            {row for found in loop.workers.gather(suspects if bad or math.isfinite(loss) else []) for row in found}
        )
        listed = ", ".join(str(row) for row in suspects)
        raise ToolkitError(
            f"step {step}: the loss is {loss}, the gradient norm {norm}; the batch holds rows {listed}",
            hint="look at these rows, or lower `train.learning_rate`; the last checkpoint before it is kept",
            details={"step": step, "rows": suspects},
        )
    for group in loop.optimizer.param_groups:
        group["lr"] = rate
    loop.precision.step(loop.optimizer)
    loop.whole.zero()
    return Step(loss, norm, sum(len(record.input_ids) for record in records), rows)


def _passes(loop: Loop, records: list[Example]) -> list[list[int]]:
    """Lay a step's records into this worker's forward passes; all workers have as many."""
    lengths = [len(record.input_ids) for record in records]
    plan, workers = loop.plan, loop.workers
    passes = batches.lay_out(lengths, plan.tokens, plan.records, workers.count)
    return passes[workers.rank :: workers.count]


def _accumulate(loop: Loop, records: list[Example], passes: list[list[int]]) -> tuple[list[float], tuple[int, int]]:
    """Run forward and backward over a step's passes; the gradients add up to that of the step's mean loss.

    Returns each pass's share of the mean loss, and the size (tokens, records) of the pass that ran out of memory, or
    (0, 0).
    """
    import torch

    total = max(1, sum(record.learned for record in records))
    # FSDP takes the mean over the workers, where all else adds up.
    scale = loop.workers.count if loop.workers.sharded else 1
    normal = torch.tensor(float(total) / scale, device=loop.device)
    losses = []
    for members in passes:
        chosen = [records[place] for place in members] or [batches.silent(records[0])]
        batch: Batch | None = None
        try:
            batch = loop.collate(chosen)
            with loop.precision.autocast():
                loss = loop.backend.loss(loop.model, batch, normal)
            loop.precision.backward(loss)
            losses.append(loss.detach() / scale)
            continue
        except RuntimeError as exc:  # torch.OutOfMemoryError is one
            if not is_out_of_memory(exc) or loop.workers.sharded:
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


def _shrink(loop: Loop, step: int, tokens: int, records: int) -> None:
    """Halve the forward pass after memory ran out; the step is then computed again from its beginning."""
    import torch

    loop.whole.zero()
    gc.collect()
    if loop.backend.device == "cuda":
        torch.cuda.empty_cache()
    smaller = loop.plan.halved(tokens, records)
    if smaller is None:
        raise ToolkitError(
            f"step {step}: out of memory with a single record of {tokens:,} tokens in the forward pass",
            hint="set train.gradient_checkpointing = true, lower `train.max_length`, or choose a smaller base",
        )
    loop.plan = smaller
    loop.out_of_memory += 1
    if loop.workers.first:
        console.warn(
            f"step {step}: out of memory with {records} records of {tokens:,} tokens in one forward pass; the step is "
            f"done again with {smaller.tokens:,} at most, in twice as many passes: the same records, the same result"
        )


def evaluation_due(step: int, loop: Loop) -> bool:
    """Tell whether the held-out loss is wanted after a step: every eval_steps, and after the last one."""
    settings = loop.config.train
    if not loop.sides["val"]:
        return False
    return step == settings.steps or (settings.eval_steps > 0 and step % settings.eval_steps == 0)


def evaluate(loop: Loop, step: int) -> float:
    """Take the held-out loss after a step and log it; the best one so far comes with a checkpoint."""
    last = step == loop.config.train.steps
    loss = held_out_loss(loop, loop.sides["val"], "held-out loss after" if last else f"held-out loss at step {step}")
    former = [entry["held_out_loss"] for entry in loop.log.held_out_entries() if entry["step"] > 0]
    loop.log.add({"step": step, "held_out_loss": loss})
    settings = loop.config.train
    if settings.eval_steps and loss < min(former, default=math.inf):
        save(loop, step, loss)
    elif step % settings.save_steps == 0:
        save(loop, step)
    return loss


def _stalled(loop: Loop, step: int, loss: float) -> bool:
    """Tell whether the last `early_stopping` held-out losses are no better than the best before them, and say so."""
    patience = loop.config.train.early_stopping
    losses = [entry["held_out_loss"] for entry in loop.log.held_out_entries() if entry["step"] > 0]
    if not patience or len(losses) <= patience or step == loop.config.train.steps:
        return False
    before, since = min(losses[:-patience]), losses[-patience:]
    if min(since) < before:
        return False
    if loop.workers.first:
        console.say(
            f"early stopping after step {step}: {patience} held-out losses in a row are no better than {before:.4f}"
        )
    return True


def _peak(loop: Loop) -> int:
    import torch

    return int(torch.cuda.max_memory_allocated(loop.device))


def _note(loop: Loop, done: Step, rate: float) -> str:
    speed = loop.seen_here / max(1e-9, loop.seconds)
    parts = [f"loss {done.loss:.3f}", f"grad {done.norm:.2f}", f"lr {rate:.1e}", f"{speed:,.0f} tokens/s"]
    if loop.backend.device == "cuda":
        parts.append(console.size(_peak(loop)))
    return "  ".join(parts)
