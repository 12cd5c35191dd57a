"""The train room: prepared records + base model → a LoRA adapter, with the loss it reached on held-out records."""

import time
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import RunFolder
from toolkit.model import memory_plan
from toolkit.model.base import Base
from toolkit.train import checkpoints, examples, outcome, parallel
from toolkit.train.backend import Backend, choose
from toolkit.train.job import Job, describe_steps, lay_out_job, process_state


class OutOfMemory(ToolkitError):
    """A micro-batch did not fit; whoever started this process may start another one with the `smaller` one, if any."""

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

    An interrupted run goes on from its last whole checkpoint, unless `restart`. Several processes that were launched
    together call this alike; the first one writes. `avoid` is why Unsloth is not to be used, `at_most` the records of a
    micro-batch after memory ran out. Raises KeyboardInterrupt after Ctrl-C, once the step in hand is saved;
    OutOfMemory; ToolkitError where the data or the loss are no good.
    """
    started = time.monotonic()
    backend, precision = _backend(config, avoid)
    job = lay_out_job(config, folder, base, backend, precision, restart=restart, at_most=at_most)
    console.info(describe_steps(job.steps, job.settings.records_a_step, len(job.splits["train"])))
    console.info(memory_plan.describe_plan(job.plan))
    if not job.plan.fits:
        console.warn(f"{job.plan.reason}; it is tried all the same")
    try:
        trainer = _fit(job)
    except RuntimeError as exc:  # torch.OutOfMemoryError is one
        if is_out_of_memory(exc):
            raise OutOfMemory(job.plan) from exc
        raise
    step = trainer.state.global_step
    if job.stopped and step < job.steps:
        console.info(f"stopped after step {step} of {job.steps}; the same command goes on from there")
        raise KeyboardInterrupt
    done = outcome.finish(job, trainer)
    done.figures["seconds"] = round(time.monotonic() - started, 1)
    return done


def _backend(config: Config, avoid: str) -> tuple[Backend, str]:
    """Choose the library that trains and its precision; raises ToolkitError where this machine cannot."""
    parallel.check()
    if parallel.rank():
        console.configure(quiet=True)
    backend = choose(config.train.backend, "PEFT shards the model" if parallel.sharded() else avoid)
    console.info(f"training on {backend.device}: {backend.reason}")
    precision = backend.precision(config.train.precision)
    if parallel.sharded() and precision == "f16":
        raise ToolkitError(
            "FSDP trains in bf16 here, and this machine's precision is f16",
            hint='set train.precision = "bf16" if its GPUs have it (Ampere and later)',
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
        console.info(f"going on from step {checkpoints.step_of(job.resume)} of {job.steps}")

    from toolkit.train import trainer as trainers  # not before: Unsloth changes TRL

    records = examples.dataset(job.splits["train"]).select(job.order.reshape(-1))
    multiple = job.plan.micro_batch * job.plan.processes
    held_out = examples.dataset(job.splits["val"], multiple=multiple) if job.splits["val"] else None
    trainer = trainers.make(job, model, records, held_out)
    with trainer.stack:
        trainer.train(resume_from_checkpoint=job.resume and str(job.resume))
    return trainer


def is_out_of_memory(exc: BaseException) -> bool:
    """Tell whether torch, or a library on top of it, found no memory on the device."""
    import torch

    said = str(exc)
    return isinstance(exc, torch.OutOfMemoryError) or "out of memory" in said or "CUBLAS_STATUS_ALLOC_FAILED" in said
