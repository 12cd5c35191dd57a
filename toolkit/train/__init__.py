"""The train room: prepared records + base model → a LoRA adapter, with the loss it reached on held-out records."""

import json
import shutil
import time
from pathlib import Path
from typing import Any

from toolkit import console, fourbit, machine, memory, tokens
from toolkit import shape as shapes
from toolkit.base import Base, silence_transformers
from toolkit.config import Config
from toolkit.errors import MISSING, ToolkitError
from toolkit.memory import Machine, Plan
from toolkit.prompt import PromptFormat, chat_template, prompt_format
from toolkit.run import Outcome, RunFolder, write_text, writing_folder
from toolkit.train import batches, check, checkpoints, examples, loop, plot
from toolkit.train import workers as processes
from toolkit.train.backend import Backend
from toolkit.train.choice import choose
from toolkit.train.interruption import Interruption
from toolkit.train.job import Job
from toolkit.train.log import LogKeeper
from toolkit.train.precision import Precision
from toolkit.train.workers import Workers


def train(config: Config, folder: RunFolder, base: Base, *, restart: bool = False, avoid: str = "") -> Outcome:
    """Fine-tune the base on `data/train.jsonl` and write `adapter/`, `train_log.jsonl` and `loss.png`.

    An interrupted run goes on from its last whole checkpoint, unless `restart`. Several processes that were launched
    together call this alike; the first one writes. `avoid` is why Unsloth is not to be used. Raises KeyboardInterrupt
    after Ctrl-C, once the step in hand is saved; ToolkitError where the data or the loss are no good.
    """
    started = time.monotonic()
    workers = processes.join()
    if not workers.first:
        console.configure(quiet=True)
    backend = choose(config.train.backend, "PEFT shards the model" if workers.sharded else avoid)
    console.say(f"training on {backend.device}: {backend.reason}")
    precision = Precision(backend.precision(config.train.precision), backend.device)
    if workers.sharded and precision.scaler is not None:
        raise ToolkitError(
            "FSDP trains in bf16 here, and this machine's precision is f16",
            hint='set train.precision = "bf16" if its cards have it (Ampere and later)',
            exit_code=MISSING,
        )
    form = prompt_format(config.prompt)
    tokenizer = tokens.load(base.folder, form)
    sides = {side: examples.tokenize(folder.side(side), tokenizer, form, config.train) for side in ("train", "val")}
    if not sides["train"]:
        raise ToolkitError(f"`{folder.side('train')}` holds no records", hint="run `toolkit prepare` again")
    examples.prove(sides["train"] + sides["val"], tokenizer)
    examples.show(sides["train"], tokenizer)

    fingerprint = checkpoints.fingerprint(config, folder)
    if restart and workers.first:
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
    resume = workers.say(checkpoints.latest(folder.checkpoints, fingerprint))
    plan = make_plan(config, base, backend, workers, [len(record.input_ids) for record in sides["train"]])
    console.say(memory.describe(plan, config.train, workers.count))
    if not plan.fits:
        console.warn(f"{plan.reason}; it is tried all the same")
    silence_transformers()
    place = None if workers.sharded else workers.device(backend.device)
    model = backend.load(base, config, plan, place, precision.dtype)
    trainable, total = parameters(model)
    console.say(f"adapter: {trainable:,} trainable of {total:,} parameters")

    precision.attach(model)
    log = LogKeeper(folder.checkpoints / "train_log.jsonl" if workers.first else None, resume.step if resume else 0)
    log.entries = workers.say(log.entries)  # all decide alike by them
    job = Job(
        config=config,
        folder=folder,
        backend=backend,
        model=model,
        plan=plan,
        sides=sides,
        workers=workers,
        precision=precision,
        log=log,
        interruption=Interruption(),
        fingerprint=fingerprint,
    )
    if resume:
        console.say(f"going on from step {resume.step} of {config.train.steps}")
    with job.interruption.watching():
        step = loop.fit(job, resume)
    if job.interruption.requested and step < config.train.steps:
        console.say(f"stopped after step {step} of {config.train.steps}; the same command goes on from there")
        raise KeyboardInterrupt
    kept = _keep_the_best(job, step)
    job.whole.release()
    adapter = job.whole.state()[0] if workers.sharded else None
    if not workers.first:
        return Outcome([], {})
    _save(model, adapter, base.folder, form, folder.adapter)
    write_text(folder.train_log, job.log.text())
    plot.loss_curve(job.log.entries, folder.loss_plot)
    outputs = sorted(path for path in folder.adapter.rglob("*") if path.is_file())
    asked = None if workers.sharded else check.answer(model, tokenizer, form, config, backend, precision)
    losses = job.log.losses()
    figures = {
        "backend": backend.name,
        "device": backend.device,
        "devices": workers.count,
        "precision": precision.name,
        "steps": step,
        "kept_step": kept,
        "trainable_parameters": trainable,
        "total_parameters": total,
        "records": len(sides["train"]),
        "tokens_seen": job.tokens,
        "tokens_per_second": round(job.seen_here / job.seconds, 1) if job.seconds else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "held_out_loss_before": job.log.held_out(0),
        "held_out_loss_after": job.log.held_out(kept),
        "seconds": round(time.monotonic() - started, 1),
        "resumed_at_step": resume.step if resume else 0,
        "base_commit": base.commit,
        "plan": {
            "tokens_per_pass": job.plan.tokens,
            "packing": config.train.packing,
            "checkpointing": job.plan.way.checkpointing,
            "dequantized": job.plan.way.dequantized,
            "reason": job.plan.reason,
        },
        "times_out_of_memory": job.out_of_memory,
        "answer": asked,
        **_memory(job),
    }
    return Outcome([*outputs, folder.train_log, folder.loss_plot], figures)


def make_plan(config: Config, base: Base, backend: Backend, workers: Workers, lengths: list[int]) -> Plan:
    """Choose what goes into a forward pass from what is free now on the device that has least.

    `lengths` are the training records' tokens.
    """
    cuda = backend.device == "cuda"
    if cuda:
        import torch

        free: int | None = int(torch.cuda.mem_get_info(workers.device("cuda"))[0])
    else:
        free = machine.available_memory()
        free = None if free is None else free // workers.count
    if free is not None:
        free = -int(workers.highest([-float(free)])[0])
    four_bit = config.model.load_in_4bit or fourbit.is_four_bit(base.folder)
    bf16 = backend.precision(config.train.precision) == "bf16"
    shards = workers.count if workers.sharded else 1
    there = Machine(free, cuda, backend.name == "unsloth", four_bit, bf16, shards)
    shape = shapes.from_folder(base.folder)
    settings = config.train
    chosen = memory.plan(shape, settings, there, workers.count)
    largest = batches.largest_pass(
        lengths, settings.batch_size * settings.accumulation, settings.steps, settings.seed, chosen.tokens,
        chosen.records, workers.count,
    )  # fmt: skip
    return memory.of_records(chosen, shape, settings, there, largest)


def parameters(model: Any) -> tuple[int, int]:
    """Count a model's trainable and its total parameters; a 4-bit weight counts as the weights it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def _keep_the_best(job: Job, step: int) -> int:
    """Bring the adapter with the lowest held-out loss back, where one was watched; return the step it is of."""
    if not job.config.train.eval_steps:
        return step
    best = checkpoints.best(job.folder.checkpoints, job.fingerprint)
    last = job.log.held_out(step)
    chosen: int = job.workers.say(
        step if best is None or best.held_out_loss is None or (last is not None and last < best.held_out_loss)
        else best.step
    )  # fmt: skip
    if best is None or chosen == step:
        return step
    console.say(f"the adapter of step {chosen} is kept: its held-out loss is the lowest, {best.held_out_loss:.4f}")
    job.whole.load(checkpoints.read(best)[0])
    return chosen


def _memory(job: Job) -> dict[str, Any]:
    """Compare the memory that was computed with what torch's allocator held at most; both are bytes."""
    if job.backend.device != "cuda":
        return {}
    import torch

    measured = int(torch.cuda.max_memory_allocated(job.device))
    said = f"memory: {console.size(measured)} at the peak"
    if job.plan.estimate:
        said += f", {console.size(job.plan.estimate)} computed"
    console.say(said)
    return {"memory_peak": measured, "memory_estimate": job.plan.estimate}


def _save(model: Any, adapter: dict[str, Any] | None, base: Path, form: PromptFormat, target: Path) -> None:
    """Write adapter and tokenizer as `save_pretrained` does; the tokenizer carries our chat template and EOS.

    `adapter` is given where the model's own parameters are only a part of it (FSDP).
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = chat_template(form)
    if form.eos:
        tokenizer.eos_token = form.eos
    with writing_folder(target) as fresh:
        model.save_pretrained(fresh, **({} if adapter is None else {"state_dict": adapter}))
        tokenizer.save_pretrained(fresh)
        _name_base(fresh / "adapter_config.json", base)


def _name_base(path: Path, base: Path) -> None:
    """Keep a cache path out of adapter_config.json: only its last part means something elsewhere."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("base_model_name_or_path") == str(base):
        values["base_model_name_or_path"] = base.name
        write_text(path, json.dumps(values, indent=2) + "\n")
