"""The train stage: prepared records and a base model → a LoRA adapter, with its loss on held-out records."""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Outcome
from toolkit.core.quiet import silence_bitsandbytes
from toolkit.core.run_folder import RunFolder
from toolkit.model import memory_plan
from toolkit.model.base import Base
from toolkit.model.precision import check_backend
from toolkit.train import batches, checkpoints, example_table, outcome, parallel, schedule
from toolkit.train.backend import Backend, UnslothFailed, gpu_has_bf16, gpu_name, said_of
from toolkit.train.backend_choice import choose_backend
from toolkit.train.job import Job, lay_out_job, process_state
from toolkit.train.stage import describe_steps


class OutOfMemory(ToolkitError):
    """A micro-batch did not fit; the caller may start another process with the `smaller` one, if any."""

    def __init__(self, plan: memory_plan.MemoryPlan) -> None:
        self.smaller = memory_plan.halved(plan.micro_batch, plan.micro_batch * plan.accumulation)
        what = f"{plan.micro_batch} records" if self.smaller else f"a single record of up to {plan.tokens:,} tokens"
        super().__init__(
            f"out of memory with {what} in a micro-batch",
            hint="set train.gradient_checkpointing = true, lower `train.max_length`, or choose a smaller base",
        )


def train(
    config: Config, folder: RunFolder, base: Base, *, restart: bool = False, avoid: str = "", at_most: int = 0
) -> Outcome:
    """Fine-tune the base on `data/train.jsonl` and write `adapter/`, `train_log.jsonl` and `loss.png`.

    An interrupted run continues from its last complete checkpoint, unless `restart`. Processes that were launched
    together all call this; the first one writes. `avoid` says why Unsloth must not be used. `at_most` limits the
    records of a micro-batch after memory ran out. Raises KeyboardInterrupt after Ctrl-C, once the current step is
    saved; OutOfMemory; ToolkitError if the data or the loss are unusable.
    """
    started = time.monotonic()
    backend, precision = _backend(config, avoid)
    job = lay_out_job(config, folder, base, backend, precision, restart=restart, at_most=at_most)
    console.info(describe_steps(job.steps, job.settings.records_a_step, len(job.splits["train"])))
    for doubt in schedule.doubts(job.settings, job.steps):
        console.warn(doubt)
    if len(job.splits["val"]) < job.held_out_records:
        some = f"{len(job.splits['val']):,} of {job.held_out_records:,} held-out records"
        console.info(f"the held-out loss is measured on {some} (train.max_eval_samples)")
    console.info(memory_plan.describe_plan(job.plan))
    if not job.plan.fits:
        console.warn(f"{job.plan.reason}; training tries it anyway")
    try:
        trainer = _fit(job)
    except RuntimeError as exc:  # torch.OutOfMemoryError is one
        if is_out_of_memory(exc):
            raise OutOfMemory(job.plan) from exc
        raise
    except KeyboardInterrupt:
        console.info(_stopped(job))
        raise
    if job.stopped and trainer.state.global_step < job.steps:
        console.info(_stopped(job))
        raise KeyboardInterrupt
    done = outcome.finish(job, trainer)
    done.figures["seconds"] = round(time.monotonic() - started, 1)
    return done


def _stopped(job: Job) -> str:
    if not job.saved:
        return "stopped before the first checkpoint"
    return f"stopped: step {job.saved} of {job.steps} is saved, and the same command continues from there"


def _backend(config: Config, avoid: str) -> tuple[Backend, str]:
    """Choose the training library and its precision; raises ToolkitError if this machine cannot run them."""
    parallel.check()
    silence_bitsandbytes()
    if parallel.rank():
        console.configure(quiet=True)
    avoid = "PEFT shards the model" if parallel.sharded() else avoid
    gpu = gpu_name()
    check_backend(config, gpu, bf16=bool(gpu) and gpu_has_bf16(), avoid_unsloth=bool(avoid))
    backend = choose_backend(config.train.backend, avoid)
    console.info(f"training on {backend.device}: {backend.reason}")
    precision = backend.precision(config.train.precision)
    if parallel.sharded() and precision == "f16":
        raise ToolkitError(
            "FSDP trains in bf16 here, and this machine's precision is f16",
            hint='set train.precision = "bf16" if its GPUs support it (Ampere and later)',
            exit_code=MISSING,
        )
    return backend, precision


def _fit(job: Job) -> Any:
    """Load the model, train it, and return the trainer."""
    import torch

    dtype = {"bf16": torch.bfloat16, "f16": torch.float16, "f32": torch.float32}[job.precision]
    place = None if parallel.sharded() else process_state(job.backend).device
    model = job.backend.load(job.base, job.config, job.plan, place, dtype)
    job.trainable, job.total = outcome.count_parameters(model)  # now: FSDP hides which weights have 4 bits
    console.info(f"adapter: {job.trainable:,} trainable of {job.total:,} parameters")
    if job.resume:
        console.info(f"continuing from step {checkpoints.step_of(job.resume)} of {job.steps}")

    from toolkit.train import trainer as trainers  # not before: Unsloth changes TRL

    records = example_table.dataset(job.splits["train"]).select(job.order.reshape(-1))
    multiple = batches.held_out_batch(len(job.splits["val"]), job.plan.micro_batch)[0] * job.plan.processes
    held_out = example_table.dataset(job.splits["val"], multiple=multiple) if job.splits["val"] else None
    with _before_a_step(job):
        trainer = trainers.make(job, model, records, held_out)
    with trainer.stack, _before_a_step(job, trainer):
        trainer.train(resume_from_checkpoint=job.resume and str(job.resume))
    return trainer


@contextlib.contextmanager
def _before_a_step(job: Job, trainer: Any = None) -> Iterator[None]:
    """Raise UnslothFailed for what Unsloth raises before a step is done: it compiles the model in the first one.

    Errors of the toolkit, of memory and of files are left as they are: plain PEFT would have them too.
    """
    start = job.saved
    try:
        yield
    except (ToolkitError, MemoryError, OSError):
        raise
    except Exception as exc:
        late = trainer is not None and trainer.state.global_step > start
        if job.backend.name != "unsloth" or late or is_out_of_memory(exc):
            raise
        raise UnslothFailed(said_of(exc)) from exc


def is_out_of_memory(exc: BaseException) -> bool:
    """Tell whether torch, or a library on top of it, ran out of memory on the device."""
    import torch

    said = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or "out of memory" in said or "CUBLAS_STATUS_ALLOC_FAILED" in said
