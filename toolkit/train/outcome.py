"""What a finished training leaves: the adapter with its tokenizer, the log, the loss curve, and the figures."""

import json
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.files import write_text, writing_folder
from toolkit.core.learned import compare_losses, warning_of
from toolkit.core.manifest import Outcome
from toolkit.core.trained_with import skipped_steps
from toolkit.prompt.templates import chat_template
from toolkit.train import checkpoints, parallel, plot, sample
from toolkit.train.job import Job
from toolkit.train.library_tokenizer import library_tokenizer, save_library_tokenizer


def finish(job: Job, trainer: Any) -> Outcome:
    """Write the run's results; every process calls this, and the first one writes."""
    folder, step, kept = job.folder, trainer.state.global_step, _kept_step(job, trainer)
    weights = trainer.adapter()
    if not trainer.is_world_process_zero():
        return Outcome([], {})
    from toolkit.train.callbacks import log_text

    model, history = trainer.accelerator.unwrap_model(trainer.model), trainer.state.log_history
    _save(job, model, weights)
    write_text(folder.train_log, log_text(history))
    plot.loss_curve(history, folder.loss_plot)
    checkpoints.clear_other_runs(folder, job.fingerprint)
    outputs = sorted(path for path in folder.adapter.rglob("*") if path.is_file())
    losses = [entry["loss"] for entry in history if "loss" in entry]
    held_out = {entry["step"]: entry for entry in history if "eval_loss" in entry}
    skipped = sum(entry.get("skipped_steps", 0) for entry in history)
    if said := skipped_steps({"skipped_steps": skipped, "steps": step}):
        console.info(said)
    learned = None
    if 0 in held_out and kept in held_out:
        learned = compare_losses(held_out[0]["eval_parts"], held_out[kept]["eval_parts"])
    figures = {
        "backend": job.backend.name,
        "device": job.backend.device,
        "devices": job.plan.processes,
        "precision": job.precision,
        "base_compute": "fp8" if job.plan.strategy.fp8 else job.precision,
        "steps": step,
        "kept_step": kept,
        "skipped_steps": skipped,
        "trainable_parameters": job.trainable,
        "total_parameters": job.total,
        "records": len(job.splits["train"]),
        "records_a_step": job.settings.records_a_step,
        "tokens_seen": int(job.step_tokens[:step].sum()),
        "tokens_per_second": round(job.tokens_here / job.seconds, 1) if job.seconds else None,
        "first_loss": losses[0] if losses else None,
        "last_loss": losses[-1] if losses else None,
        "held_out_records": job.held_out_records,
        "held_out_used": len(job.splits["val"]),
        "held_out_loss_before": learned.before if learned else None,
        "held_out_loss_after": held_out[kept]["eval_loss"] if kept in held_out else None,
        "learned": learned.figures if learned else None,
        "resumed_at_step": checkpoints.step_of(job.resume) if job.resume else 0,
        "base_commit": job.base.commit,
        "plan": {
            "micro_batch": job.plan.micro_batch,
            "accumulation": job.plan.accumulation,
            "tokens": job.plan.tokens,
            "checkpointing": job.plan.strategy.checkpointing,
            "dequantized": job.plan.strategy.dequantized,
            "reason": job.plan.reason,
        },
        **_memory(job, trainer.args.device),
    }
    figures["answers"] = [] if parallel.sharded() else sample.answers(job, model)
    where = f"{len(job.splits['val']):,} of {job.held_out_records:,} held-out records"
    warning = warning_of(learned, where, job.settings.learning_rate)
    return Outcome([*outputs, folder.train_log, folder.loss_plot], figures, warning)


def _kept_step(job: Job, trainer: Any) -> int:
    """Return the step of the adapter that is kept, and say so if it is not the last one."""
    state, settings = trainer.state, job.settings
    step: int = state.global_step
    if step < job.steps:
        patience = settings.early_stopping_patience
        console.info(f"early stopping after step {step}: {patience} held-out losses in a row were not better")
    if not settings.eval_steps or not state.best_global_step or state.best_global_step == step:
        return step
    best = int(state.best_global_step)
    console.info(f"the adapter of step {best} is kept: its held-out loss is the lowest, {state.best_metric:.4f}")
    return best


def count_parameters(model: Any) -> tuple[int, int]:
    """Count a model's trainable and its total parameters; a 4-bit weight counts as the weights it stands for."""
    trainable = total = 0
    for parameter in model.parameters():
        count = parameter.numel()
        if type(parameter).__name__ == "Params4bit":
            count *= 2 * parameter.element_size()
        total += count
        trainable += count if parameter.requires_grad else 0
    return trainable, total


def _memory(job: Job, device: Any) -> dict[str, Any]:
    """Compare the memory that was computed with what torch's allocator held at most; both are bytes."""
    if device.type != "cuda":
        return {}
    import torch

    measured = int(torch.cuda.max_memory_allocated(device))
    said = f"memory: {console.size(measured)} at the peak"
    if job.plan.estimate:
        said += f", {console.size(job.plan.estimate)} computed"
    console.info(said)
    return {"memory_peak": measured, "memory_estimate": job.plan.estimate}


def _save(job: Job, model: Any, weights: dict[str, Any]) -> None:
    """Write adapter and tokenizer as `save_pretrained` does; the tokenizer carries our chat template and EOS."""
    tokenizer = library_tokenizer(job.base.folder)
    tokenizer.chat_template = chat_template(job.prompt_format, bos=job.tokenizer.bos is not None)
    if job.tokenizer.bos_text and tokenizer.bos_token is None:  # the template names it
        tokenizer.bos_token = job.tokenizer.bos_text
    if job.prompt_format.eos:
        tokenizer.eos_token = job.prompt_format.eos
    with writing_folder(job.folder.adapter) as fresh:
        model.save_pretrained(fresh, state_dict=weights)
        save_library_tokenizer(tokenizer, fresh)
        _name_base(fresh / "adapter_config.json", job.base.folder)


def _name_base(path: Path, base: Path) -> None:
    """Keep a cache path out of adapter_config.json: only its last part is of use elsewhere."""
    values = json.loads(path.read_text(encoding="utf-8"))
    if values.get("base_model_name_or_path") == str(base):
        values["base_model_name_or_path"] = base.name
        write_text(path, json.dumps(values, indent=2) + "\n")
