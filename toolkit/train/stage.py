"""The stage `train`."""

from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    from toolkit.model import base

    weights = base.source_files(base.training_label(config.model))
    outputs = [*folder.adapter_files, folder.train_log, folder.loss_plot]
    return StageFiles([folder.split_file("train"), folder.split_file("val"), *weights], outputs)


def _run(context: Context) -> "Outcome":
    from toolkit.model import base
    from toolkit.train.launch import run_training

    found = base.resolve_training(context.config.model)
    return run_training(context.config, context.folder, found, restart=context.force, gpus=context.gpus)


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.core import console
    from toolkit.core.learned import unmeasured
    from toolkit.core.trained_with import trained_with

    before, after = figures["held_out_loss_before"], figures["held_out_loss_after"]
    known = figures.get("records_a_step")  # an older manifest does not say
    steps = f"{figures['steps']:,} steps on {figures['records']:,} records"
    if known:
        steps = describe_steps(figures["steps"], known, figures["records"])
    lines = [
        f"{steps} ({trained_with(figures)}): "
        f"{figures['tokens_seen']:,} tokens in {console.duration(figures['seconds'])}",
        f"{folder.adapter}, {folder.loss_plot}",
    ]
    if after is not None:
        used, there = figures.get("held_out_used"), figures.get("held_out_records")
        share = f" on {used:,} of {there:,} held-out records" if used and there else ""
        started = "unknown" if before is None else f"{before:.4f}"
        lines.insert(1, f"held-out loss {started} → {after:.4f} nats per token{share}")
    if said := unmeasured(figures):
        lines.insert(-1, f"{said}; `toolkit validate` compares it with its base")
    return "\n".join(lines)


def describe_steps(steps: int, per_step: int, records: int) -> str:
    """Say in one line how long a run is, and how many of its training records it sees."""
    seen = steps * per_step
    share = f"{seen:,} of " if seen < records else ""
    count = f"{steps:,} step{'s' * (steps > 1)} of {per_step:,} record{'s' * (per_step > 1)}"
    return f"{count}: {share}{records:,} record{'s' * (records > 1)}, {seen / records:.2f} epochs"


def _held(config: "Config", folder: "RunFolder") -> int:
    from toolkit.train import checkpoints

    return checkpoints.bytes_of(config, folder)


def _after(context: Context) -> None:
    from toolkit.train import checkpoints

    checkpoints.clear_finished(context.config, context.folder)


def _checks(there: Examination) -> Checks:
    from toolkit.train import checks

    made: Checks = [("backend", lambda: checks.backend(there.config, there.gpu))]
    gpu = there.gpu
    if gpu is not None:
        made.append(("attention", lambda: checks.attention(there.config, gpu)))
    return made


STAGE = Stage(
    name="train",
    settings=("train", "prompt", "model.base", "model.revision", "model.load_in_4bit"),
    idle=(
        *("train.save_steps", "train.eval_steps", "train.max_eval_samples"),
        *("train.logging_steps", "train.report_to", "train.allow_unexportable"),
    ),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
    after=_after,
    held=_held,
    costly=True,
)
