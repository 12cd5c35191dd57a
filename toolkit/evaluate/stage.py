"""The stage `evaluate`, beside the chain: nothing waits for it."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Context, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    from toolkit.core.evaluate_settings import BASE, TRAINED
    from toolkit.model import base

    wanted = config.evaluate.systems or [BASE, TRAINED, *config.export.quantizations]
    files = [folder.gguf(name) for name in config.export.quantizations if name in wanted]
    exam = [Path(config.evaluate.exam).expanduser()] if config.evaluate.exam else []
    merged = base.source_files(base.merge_label(config.model, config.export))
    splits = [folder.split_file("test"), folder.split_file("train")]
    inputs = [*files, *folder.adapter_files, *splits, *merged, *(path for path in exam if path.is_file())]
    return StageFiles(inputs, [folder.evaluation])


def _run(context: Context) -> "Outcome":
    from toolkit.evaluate import evaluate
    from toolkit.model import base_choice

    found, shards = base_choice.choose_base(context.config.model, context.config.export)
    return evaluate(context.config, context.folder, found, context.manifest, kept=shards is None, force=context.force)


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.evaluate.summary import evaluation_text

    return f"{evaluation_text(figures)}\n{folder.evaluation}"


STAGE = Stage(
    name="evaluate",
    settings=("evaluate", "prompt", "model", "export", "run.name"),
    idle=("export.stream_base",),
    files=_files,
    run=_run,
    summary=_summary,
    needs={"export": "there are no GGUF files of this model to evaluate"},
)
