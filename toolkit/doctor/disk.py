"""The check of the disk: what each stage writes on each file system, what it keeps there, and what is free."""

import os
from collections.abc import Sequence

from toolkit.core import hardware
from toolkit.core.console import size
from toolkit.core.places import mover
from toolkit.core.stage import Check
from toolkit.doctor import plan
from toolkit.doctor.plan import Write
from toolkit.doctor.resources import Job
from toolkit.model import base


def disk(job: Job) -> list[Check]:
    """Compare what will be written on each file system at its peak with what is free there.

    Where the base may be streamed (`export.stream_base`) and does not fit, it is counted in pieces.
    """
    systems = _by_system(_writes(job, streamed=streams(job)))
    barred = [check for there in systems for write in there if (check := _barred(write))]
    return [*barred, *(_file_system(together, job) for together in systems)]


def streams(job: Job) -> bool:
    """Tell whether a base of these stages will be read from the hub in pieces: by the settings, or for lack of room."""
    there = {name: plan.may_stream(name, job.config, job.stages) for name in plan.labels(job.config, job.stages)}
    revisions = {name: base.revision_of(name, job.config.model) for name, may in there.items() if may}
    if all(base.wholly_cached(name, revision) for name, revision in revisions.items()):
        return False
    if job.config.export.stream_base != "auto":
        return True
    return not all(_fits(writes, job.stages) for writes in _by_system(_writes(job, streamed=False)))


def _writes(job: Job, *, streamed: bool) -> list[Write]:
    writes = plan.stage_writes(job.config, job.folder, job.shape, job.held)
    for label in plan.labels(job.config, job.stages):
        writes += plan.base_writes(
            label,
            base.revision_of(label, job.config.model),
            job.shape,
            stage=plan.first_use(label, job.config, job.stages),
            streamed=streamed and plan.may_stream(label, job.config, job.stages),
        )
    return writes


def _by_system(writes: Sequence[Write]) -> list[list[Write]]:
    systems: dict[int, list[Write]] = {}
    for write in writes:
        systems.setdefault(hardware.file_system(write.path), []).append(write)
    return list(systems.values())


def peak(writes: Sequence[Write], stages: Sequence[str]) -> int:
    """Return the most bytes that are on the disk at once: what stays adds up, the rest goes with its stage."""
    order = [stage for stage in stages if any(write.stage == stage for write in writes)] or [""]
    most = 0
    for index, stage in enumerate(order):
        kept = [write.size for write in writes if write.kept and (not write.stage or write.stage in order[: index + 1])]
        gone = [write.size for write in writes if not write.kept and write.stage == stage]
        most = max(most, sum(kept) + sum(gone))
    return most


def _fits(writes: Sequence[Write], stages: Sequence[str]) -> bool:
    return peak(writes, stages) <= hardware.free_disk(writes[0].path)


def _barred(write: Write) -> Check | None:
    """Fail where a cache cannot be written; the run folder has a check of its own, and the server its own user."""
    variable, place = mover(write.path), hardware.existing(write.path)
    if not variable or os.access(place, os.W_OK | os.X_OK):
        return None
    found = f"`{write.path}` cannot be written: no permission for `{place}`"
    return Check("cache", False, found, f"change its permissions, or set {variable} to another folder")


def _file_system(writes: list[Write], job: Job) -> Check:
    places = ", ".join(dict.fromkeys(str(write.path) for write in writes))
    need = peak(writes, job.stages)
    listed = ", ".join(
        f"{write.what} {size(write.size)}" + ("" if write.kept else f" during {write.stage}") for write in writes
    )
    free = hardware.free_disk(writes[0].path)
    fits = need <= free
    found = f"{places}: needs {size(need)} at most ({listed}), {'' if fits else 'only '}{size(free)} are free"
    if any(write.what.startswith("pieces of") for write in writes):
        found += "; the base is read from the hub in pieces and not kept (export.stream_base)"
    return Check("disk", fits, found, "" if fits else _move(writes, need - free, job))


def _move(writes: list[Write], missing: int, job: Job) -> str:
    largest = max(writes, key=lambda write: write.size)
    ways = {
        "GGUF files": "write fewer with `--set export.quantizations=Q4_K_M`, or set run.folder to another disk",
        "Ollama's copies": "set OLLAMA_MODELS to a folder on another disk, for the server too",
        "converted base": "set XDG_CACHE_HOME to a folder on another disk",
        "last layer's states": "lower `validate.rows`, or set run.folder to another disk",
    }
    hub = (
        "set HF_HOME to a folder on another disk"
        if largest.what.startswith("download")
        else "set run.folder to another disk"
    )
    if job.config.export.stream_base is False and largest.what.startswith("download"):
        hub = f"read the base in pieces with `--set export.stream_base=auto`, or {hub}"
    return f"free {size(missing)} there; or {ways.get(largest.what, hub)}"
