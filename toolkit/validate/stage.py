"""The stage `validate`."""

from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    from toolkit.model import base, merge_base

    merged = base.source_files(base.merge_label(config.model, config.export))
    bases = [*merged, *merge_base.other_files(config.model, config.export)]
    files = [folder.gguf(quantization) for quantization in config.export.quantizations]
    return StageFiles([*files, *folder.adapter_files, folder.split_file("test"), *bases], [folder.report])


def _run(context: Context) -> "Outcome":
    from toolkit.model import base_choice, merge_base
    from toolkit.validate import validate

    config, manifest = context.config, context.manifest
    found, shards = base_choice.choose_base(config.model, config.export)
    other = merge_base.other(config.model, config.export, manifest.stages.get("train"))
    return validate(config, context.folder, found, manifest, other, shards)


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.validate.report import report_table

    return f"{report_table(figures)}\n{folder.report}, {folder.page}"


def _checks(there: Examination) -> Checks:
    from toolkit.llamacpp import checks

    made: Checks = [("one libggml", checks.second_ggml), ("llama.cpp", checks.llama_cpp)]
    return [*made, ("llama.cpp on the GPU", checks.gpu_build)] if there.gpu is not None else made


STAGE = Stage(
    name="validate",
    settings=("validate", "prompt", "model", "export", "run.name", "ollama.repeat_penalty"),
    idle=("export.stream_base",),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
)
