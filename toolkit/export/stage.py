"""The stage `export`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Check, Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    from toolkit.model import base

    inputs = [*folder.adapter_files, *base.source_files(base.merge_label(config.model, config.export))]
    outputs = [folder.gguf(quantization) for quantization in config.export.quantizations]
    if config.export.imatrix:  # it is computed from the training split
        inputs.append(folder.split_file("train"))
        outputs.append(folder.imatrix)
    return StageFiles(inputs, outputs)


def _run(context: Context) -> "Outcome":
    from toolkit.export.of_run import export_run

    return export_run(context.config, context.folder, context.manifest, context.force)


def _held(config: "Config", folder: "RunFolder") -> int:
    """Count what an interrupted export from the hub's shards left, with which the next one goes on."""
    from toolkit.export import streaming

    return streaming.begun(map(folder.gguf, config.export.quantizations))


def _may_replace(context: Context, path: Path) -> bool:
    """Tell whether this is a complete importance matrix of an export that did not finish."""
    from toolkit.export.of_run import kept_imatrix

    return path == context.folder.imatrix and kept_imatrix(context.folder) is not None


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    names = [name for name, value in figures.items() if isinstance(value, dict)]
    return files_table({name: {"path": str(folder.gguf(name)), **figures[name]} for name in names})


def files_table(files: dict[str, dict[str, Any]]) -> str:
    """Return exported files as a table: quantization, size, bits per weight, path, hash."""
    from toolkit.core import console

    rows = [
        (
            name,
            console.size(file["bytes"]),
            file.get("bits_per_weight", "-"),
            file["path"],
            file["sha256"][:16] if isinstance(file.get("sha256"), str) else "-",
        )
        for name, file in files.items()
    ]
    return console.table(("quantization", "size", "bits/weight", "file", "sha256"), rows)


def _checks(there: Examination) -> Checks:
    from toolkit.export import checks
    from toolkit.llamacpp import checks as library

    quantizations = there.config.export.quantizations
    return [
        ("one libggml", library.second_ggml),
        ("llama.cpp", library.llama_cpp),
        ("quantizer", lambda: checks.quantizer(quantizations)),
    ]


def _foresee(config: "Config", offline: bool) -> Check | None:
    from toolkit.export.foresight import look_ahead

    return look_ahead(config, offline)


STAGE = Stage(
    name="export",
    settings=(
        *("run.name", "prompt", "model", "export.quantizations"),
        *("export.merge_base", "export.overrides", "export.imatrix"),
    ),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
    may_replace=_may_replace,
    held=_held,
    foresee=_foresee,
)
