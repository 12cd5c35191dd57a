"""The result of a verb: the same facts as a JSON object for scripts and as text for people."""

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import pipeline
from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.pipeline.freshness import check_plan, look_at_all
from toolkit.pipeline.results import Done

if TYPE_CHECKING:
    from toolkit.export import ExportPlan as ExportPlan
    from toolkit.pipeline.findings import Finished, Status

Summary = tuple[dict[str, Any], str]


def of(done: Done, folder: RunFolder) -> Summary:
    """Summarise one stage; its figures go into the JSON whole."""
    payload = {"stage": done.stage, "fresh": done.fresh, "why": done.why, "seconds": done.seconds, **done.figures}
    payload["warning"] = done.warning
    return payload, pipeline.stage(done.stage).summary(done.figures, folder)


def of_run(finished: "Finished") -> Summary:
    """Summarise a whole run: what was done, what was fresh, and how long each took."""
    if finished.registered and all(done.fresh for done in finished.stages):
        return {"stages": {}, "folder": str(finished.folder)}, str(finished)
    stages = {
        done.stage: {"fresh": done.fresh, "seconds": done.seconds, **done.figures, "warning": done.warning}
        for done in finished.stages
    }
    return {"stages": stages, "folder": str(finished.folder)}, str(finished)


def of_export(figures: dict[str, Any]) -> Summary:
    """Summarise an export outside a run folder: its files, or with --dry-run their sizes and the plan."""
    from toolkit.export.stage import files_table

    text = files_table(figures["files"])
    if "plan" in figures:
        from toolkit.export import preview

        text = f"{preview.plan_table(figures['plan'])}\n{text}"
    return figures, text


def of_rollback(figures: dict[str, Any]) -> Summary:
    """Summarise which model each changed tag holds after a rollback, or would with --dry-run."""
    rows = [
        (f"{figures['name']}:{tag}", values["digest"][:12], values["run"] or "(not made with toolkit)")
        for tag, values in figures["tags"].items()
    ]
    title = "would hold (nothing is changed)" if figures["dry_run"] else f"rolled back at {figures['server']}"
    return figures, f"{title}\n" + console.table(("model", "id", "made by run"), rows)


def of_status(status: "Status") -> Summary:
    """Summarise the state of every stage, when it ran, and what the Ollama server holds."""
    payload = {
        stage: {"state": one.state, "why": one.why, "finished": one.finished, "warning": one.warning}
        for stage, one in status.stages.items()
    }
    found = {"run": status.run, "folder": str(status.folder), "run_id": status.run_id, "stages": payload}
    return {**found, "ollama": status.ollama}, str(status)


def preview(stages: list[str], config: Config, folder: RunFolder) -> Summary:
    """Say what would be done, with sizes, and write nothing; raises ToolkitError where a stage lacks an input."""
    found = look_at_all(config, folder)
    check_plan(stages, found, config)
    rows, payload = [], {}
    for stage in stages:
        why, files = found[stage].why, found[stage].files
        reads, writes = [str(path) for path in files.inputs], [str(path) for path in files.outputs]
        payload[stage] = {"would_run": bool(why), "why": why, "reads": reads, "writes": writes}
        rows.append((stage, f"would run: {why}" if why else "fresh, would be skipped", _size_of(reads), _short(writes)))
    free = shutil.disk_usage(next(p for p in folder.path.resolve().parents if p.exists())).free
    # The adapter in the folder is what would be exported, if no training comes before.
    certain = folder.adapter.is_dir() and (stages == ["export"] or not found["train"].why)
    writing = _export_plan(config, folder, certain=certain) if "export" in stages else None
    text = console.table(("stage", "what", "reads", "writes"), rows, title=f"{folder.path} (nothing is written)")
    said: dict[str, Any] = {
        "dry_run": True,
        "stages": payload,
        "gguf_bytes": writing.bytes if writing else {},
        "free_bytes": free,
    }
    if writing and stages == ["export"]:
        from toolkit.export import preview as exports

        said["plan"] = exports.describe_export(writing)
        text += f"\n{exports.plan_table(said['plan'])}"
    elif writing:
        listed = ", ".join(f"{name} {console.size(count)}" for name, count in writing.bytes.items())
        text += f"\nGGUF files: {listed}"
    text += f"\nfree disk space: {console.size(free)}"
    return said, text


def _export_plan(config: Config, folder: RunFolder, *, certain: bool) -> "ExportPlan | None":
    """Plan the export where base and adapter are on this machine already; else nothing is known.

    Raises ToolkitError for an adapter that cannot be exported if it is `certain` that it is the one.
    """
    from toolkit.export import plan
    from toolkit.model import base, merge_base

    label = base.merge_label(config.model, config.export)
    try:
        present = merge_base.present(label, config.model)
        if present is None:
            return None
        adapter = folder.adapter if folder.adapter.is_dir() else None
        wanted = config.export
        return plan(present, adapter, wanted.quantizations, overrides=wanted.overrides, weighed=wanted.imatrix)
    except ToolkitError:
        if certain:
            raise
        return None


def _size_of(paths: list[str]) -> str:
    total = sum(Path(path).stat().st_size for path in paths if Path(path).is_file())
    return console.size(total) if total else "-"


def _short(paths: list[str]) -> str:
    shown = ", ".join(paths[:2])
    return f"{shown} and {len(paths) - 2} more" if len(paths) > 2 else shown
