"""The doctor: is this machine able to do the configured run? All is looked at before anything expensive starts."""

import contextlib
import sys
from collections.abc import Callable, Sequence
from functools import partial

from toolkit.core import console, hardware
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError, explain
from toolkit.core.run_folder import RunFolder
from toolkit.core.stage import Check, Examination, Found, Stage
from toolkit.doctor import checks, disk, plan, resources
from toolkit.doctor.resources import Job
from toolkit.model import base

# Checks of what a stage would refuse a model for: where one of them failed, it is not asked as well.
SAID_THERE = ("base ", "adapter", "prompt", "llama.cpp")

__all__ = ["Check", "doctor", "table"]


def doctor(
    config: Config, folder: RunFolder, *, offline: bool, stages: Sequence[Stage], later: Sequence[Stage] = ()
) -> list[Check]:
    """Check what the given stages need: tools, base, data, memory, disk, Ollama.

    Every check is made, whatever the others find; one that raises an error counts as failed. Only headers are read or
    asked for, and nothing is written but the small files of a base on the hub, into its cache. A missing Ollama
    server fails only where registering is all that is to be done. Where hours may follow, the stages and those that
    come `later` are asked whether they could use the trained model.
    """
    names = tuple(stage.name for stage in stages)
    found: list[Check] = []
    made: set[str] = set()

    def look(name: str, check: Callable[[], Found]) -> None:
        if name not in made:  # two stages may ask the same
            made.add(name)
            result = _guarded(name, check)
            found.extend(result if isinstance(result, list) else [result])

    look("python", checks.python)
    look("libraries", checks.libraries)
    look("cpu", checks.cpu)
    gpu = None
    try:
        gpu = hardware.gpu()
    except Exception as exc:  # a broken driver or torch: reported here, and the checks continue with the CPU
        found.append(_broken("gpu", exc))
    else:
        look("gpu", lambda: checks.gpu(gpu))
    there = Examination(config, gpu, offline, alone=len(stages) == 1)
    for stage in stages:
        for name, check in stage.checks(there):
            look(name, check)
    labels = plan.labels(config, names)
    for label in labels:
        revision = base.revision_of(label, config.model)
        look(f"base {label}", partial(checks.base_model, label, revision, offline=offline))
    if labels:
        held = {stage.name: 0 for stage in stages}
        for stage in stages:
            with contextlib.suppress(OSError):  # files that cannot be read hold nothing useful
                held[stage.name] = stage.held(config, folder)
        _look_at_resources(config, folder, held, labels[0], gpu, look)
    if any(stage.costly for stage in stages) or "export" in names:
        sound = all(check.ok is not False for check in found if check.name.startswith(SAID_THERE))
        for stage in [*stages, *later]:
            look(stage.name, partial(_ahead, stage, config, offline=offline, sound=sound))
    look("run folder", lambda: checks.run_folder(folder))
    return found


def _ahead(stage: Stage, config: Config, *, offline: bool, sound: bool) -> Found:
    """Ask a stage whether it could use the trained model; what is not `sound` fails elsewhere already."""
    check = stage.foresee(config, offline) if sound else None
    if check is None:
        return []
    if check.ok is False and config.train.allow_unexportable:
        return Check(check.name, None, f"{check.found}; the adapter alone is trained (train.allow_unexportable)", "")
    return check


def _look_at_resources(
    config: Config,
    folder: RunFolder,
    held: dict[str, int],
    label: str,
    gpu: hardware.Gpu | None,
    look: Callable[[str, Callable[[], Found]], None],
) -> None:
    revision = base.revision_of(label, config.model)
    shape = resources.shape_or_none(label, revision)
    if shape is None:
        look("memory", lambda: resources.least_memory(label, revision))
        return
    job = Job(config, folder, held, shape, gpu)
    if "train" in job.stages:
        look("adapter", lambda: resources.adapter(config, shape))
        look("positions", lambda: resources.positions(config, shape))
    look("memory", lambda: resources.memory(job, streamed=disk.streams(job)))
    look("disk", lambda: disk.disk(job))


def _guarded(name: str, check: Callable[[], Found]) -> Found:
    """Make a check; an exception inside it becomes a failed one."""
    try:
        return check()
    except Exception as exc:
        return _broken(name, exc)


def _broken(name: str, exc: Exception) -> Check:
    known = exc if isinstance(exc, ToolkitError) else explain(exc)
    if known is not None:
        return Check(
            name, False, known.message, known.hint or "fix what the message names, then run `toolkit doctor` again"
        )
    reason = " ".join(f"{type(exc).__name__}: {exc}".split())
    return Check(name, False, f"the check itself failed: {reason[:300]}", "see it in full with TOOLKIT_DEBUG=1")


def checks_table(found: Sequence[Check]) -> str:
    """Format the checks as a table, with each failed check's fix below it."""
    marks = {True: ("✓", "ok"), False: ("✗", "FAIL"), None: ("–", "-")}
    plain = not _writable("✓✗–")
    rows = [(marks[check.ok][plain], check.name, check.found) for check in found]
    text = console.table(("", "check", "found"), rows)
    fixes = [f"{marks[check.ok][plain]} {check.name}: {check.fix}" for check in found if check.fix and not check.ok]
    return "\n".join([text, "", "What to do:", *fixes]) if fixes else text


def _writable(text: str) -> bool:
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True
