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

    before, after = figures["held_out_loss_before"], figures["held_out_loss_after"]
    held_out = "" if after is None else f"held-out loss {before:.4f} → {after:.4f} nats per token, "
    return (
        f"{figures['steps']:,} steps on {figures['records']:,} records ({figures['backend']}, {figures['device']}, "
        f"{figures['precision']}): {held_out}{figures['tokens_seen']:,} tokens in "
        f"{console.duration(figures['seconds'])}\n{folder.adapter}, {folder.loss_plot}"
    )


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
    idle=("train.save_steps", "train.eval_steps", "train.report_to"),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
)
