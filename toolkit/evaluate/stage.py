"""The stage `evaluate`, which `toolkit run` leaves out: no other stage needs it."""

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
    tasks = _task_data(Path(config.evaluate.task_folder).expanduser()) if config.evaluate.task_folder else []
    merged = base.source_files(base.merge_label(config.model, config.export))
    splits = [folder.split_file("test"), folder.split_file("train")]
    inputs = [*files, *folder.adapter_files, *splits, *merged, *exam, *(tasks if config.evaluate.tasks else [])]
    return StageFiles(inputs, [folder.evaluation])


def _task_data(folder: Path) -> list[Path]:
    """Return the files of `evaluate.task_folder`; what a download notes about itself is hidden, and is none of them."""
    if not folder.is_dir():
        return [folder]
    found = [path for path in folder.rglob("*") if path.is_file()]
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _given(config: "Config") -> None:
    from toolkit.evaluate.exam import read_exam
    from toolkit.evaluate.task_data import check_task_folder

    settings = config.evaluate
    if settings.exam:
        read_exam(Path(settings.exam).expanduser())
    if settings.tasks and settings.task_folder:
        check_task_folder(Path(settings.task_folder).expanduser())


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
    given=_given,
    run=_run,
    summary=_summary,
    needs={"export": "there are no GGUF files of this model to evaluate"},
)
