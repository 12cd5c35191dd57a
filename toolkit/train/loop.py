"""The training loop: one step after the other, each recorded, checked, and repeatable from the last checkpoint."""

import gc
import math
from typing import Any

from toolkit import console
from toolkit.train import checkpoints, schedule, step
from toolkit.train.checkpoints import Checkpoint
from toolkit.train.evaluate import held_out_loss
from toolkit.train.job import Job
from toolkit.train.sharding import Whole
from toolkit.train.step import Finished, Launched, Moment


def fit(job: Job, resume: Checkpoint | None) -> int:
    """Train from a checkpoint, or from the start, to the last step; return the last step done.

    Ends early after Ctrl-C (`job.interruption.requested`), with a checkpoint, or where the held-out loss stopped
    falling. Raises ToolkitError where loss or gradient are not finite.
    """
    first = _begin(job, resume)
    gc.collect()
    gc.freeze()  # the libraries' million objects: walking through them again and again costs 6 % of a short step
    try:
        return _steps(job, first)
    finally:
        gc.unfreeze()


def _steps(job: Job, first: int) -> int:
    """Train from the step after `first`; as `fit`."""
    settings = job.config.train
    if job.sides["val"] and job.workers.say(job.log.held_out(0)) is None:
        job.log.add({"step": 0, "held_out_loss": held_out_loss(job, job.sides["val"], "held-out loss before")})
    ahead = _ahead(job)
    launched: list[Launched] = []
    number = first
    job.clock = Moment.now(job)
    with console.progress("training", settings.steps, "steps") as progress:
        progress.skip_to(first)
        for number in range(first + 1, settings.steps + 1):
            launched.append(step.launch(job, number))
            job.interruption.requested = job.workers.highest([float(job.interruption.requested)])[0] > 0
            last = number == settings.steps
            stop = job.interruption.requested and not last
            evaluates = not stop and evaluation_due(number, job)
            saves = not evaluates and not last and (stop or number % settings.save_steps == 0)
            while len(launched) > (0 if evaluates or saves or last else ahead):
                progress.advance(note=_record(job, step.finish(job, launched.pop(0))))
            if evaluates:
                stop = _stalled(job, number, evaluate(job, number))
            if saves:
                save(job, number)
            if evaluates or saves:
                job.clock = Moment.now(job)
            if stop:
                break
    return number


def _ahead(job: Job) -> int:
    """Return how many steps may be launched and not yet read; f16 reads each one to choose its scale."""
    return 1 if job.backend.device == "cuda" and job.precision.scaler is None else 0


def _record(job: Job, done: Finished) -> str:
    """Log a step that is finished, and return what the progress line says of it."""
    launched = done.step
    elapsed, job.clock = launched.ended.since(job.clock), launched.ended
    job.tokens += done.tokens
    job.seen_here += done.tokens
    job.seconds += elapsed
    entry = {"step": launched.number, "loss": done.loss, "grad_norm": done.norm, "learning_rate": launched.rate}
    entry |= {"tokens": job.tokens, "tokens_per_second": round(done.tokens / max(1e-9, elapsed), 1)}
    parts = [f"loss {done.loss:.3f}", f"grad {done.norm:.2f}", f"lr {launched.rate:.1e}"]
    parts.append(f"{job.seen_here / max(1e-9, job.seconds):,.0f} tokens/s")
    if job.backend.device == "cuda":
        entry["memory"] = _peak(job)
        parts.append(console.size(entry["memory"]))
    job.log.add(entry)
    return "  ".join(parts)


def _begin(job: Job, resume: Checkpoint | None) -> int:
    """Bring model, optimizer and random numbers to where they were, and return the step that is done."""
    import torch

    settings = job.config.train
    cuda = job.backend.device == "cuda"
    adapter, state = checkpoints.read(resume) if resume else ({}, {})
    job.workers.equalize(job.model.parameters())

    def make(parameters: list[Any]) -> Any:
        return schedule.optimizer(
            parameters, settings, cuda=cuda, sharded=job.workers.sharded, quiet=not job.workers.first
        )

    dtype = job.precision.dtype if cuda else None
    job.whole = Whole.of(job.model, make, job.workers, adapter, state.get("optimizer"), dtype)
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
