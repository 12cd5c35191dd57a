"""Run one stage. Only this module writes the manifest, the settings in the run's folder, and its pages."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from toolkit import __version__
from toolkit.core import console
from toolkit.core.errors import GATE, ToolkitError, explain, unexpected
from toolkit.core.stage import Context, Stage, StageFiles
from toolkit.pipeline import BESIDE, chain, settings_of, stage
from toolkit.pipeline.freshness import check_inputs, check_stages_before, look, refuse_stale, whole_state
from toolkit.pipeline.results import Done
from toolkit.pipeline.usable import check_usable

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.run_folder import RunFolder

LIBRARIES = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "datasets",
    "peft",
    "unsloth",
    "bitsandbytes",
    "gguf",
    "llama-cpp-python",
)


def perform(
    name: str,
    config: "Config",
    folder: "RunFolder",
    *,
    force: bool = False,
    offline: bool = False,
    gpus: int = 1,
    replace: tuple[str, ...] = (),
    before: Callable[[], bool] = lambda: False,
) -> Done:
    """Run one stage unless it is fresh, and record it in the manifest only when it succeeded.

    `before` is called first of all where the stage is not fresh; it says whether the later stages were asked about the
    model that is to be trained. Raises ToolkitError if an earlier stage's files are
    missing or out of date, or if it would overwrite files that it did not write.
    """
    from toolkit.core.file_changes import seen_again
    from toolkit.core.manifest import Outcome, read_manifest, write_manifest
    from toolkit.core.run_folder import sweep
    from toolkit.core.unfinished import noting, settle

    sweep(folder)
    manifest, found = read_manifest(folder), stage(name)
    why = look(name, config, folder, manifest).why
    if not force:
        check_stages_before(name, config, folder)
    if not why and not force:
        settle(folder, name)
        keep_settings(config, folder)
        record = seen_again(manifest.stages[name], folder, found.files(config, folder).inputs)
        if record != manifest.stages[name]:
            manifest.stages[name] = record
            write_manifest(folder, manifest)
        if not _page_is_newest(folder):
            update_pages(config, folder)
        files = tuple(folder.path / file.path for file in record.outputs)
        return Done(name, True, "", record.figures, 0.0, record.warning, files)
    asked = before()
    if found.costly and not asked:
        check_usable(config, offline=offline)
    why = why or "--force"
    context = Context(config, folder, manifest, force, offline, gpus, replace)
    found.given(config)
    found.before(context)
    planned = found.files(config, folder)
    check_inputs(name, planned.inputs)
    if not force:
        _check_outputs(found, context, planned)
        _check_needs(found, context)
        found.gate(context)
    console.info(f"\n{name} ({'first time' if why == 'not run' else why})")
    started = time.monotonic()
    failed: ToolkitError | None = None
    try:
        with _settings_kept(config, folder, only_on_success=name in BESIDE), noting(folder, name):
            outcome = found.run(context)
    except ToolkitError as exc:
        if exc.exit_code != GATE:
            raise
        failed, outcome = exc, Outcome(planned.outputs, {})  # the report exists, and its verdict is no
    seconds = round(time.monotonic() - started, 2)
    _record(found, context, planned, outcome, seconds, failed)
    update_pages(config, folder)
    if failed:
        raise failed
    found.after(context)
    return Done(name, False, why, outcome.figures, seconds, outcome.warning, tuple(outcome.outputs))


@contextmanager
def _settings_kept(config: "Config", folder: "RunFolder", *, only_on_success: bool) -> Iterator[None]:
    """Write the settings now: if this process dies, the folder alone says how to continue.

    A stage beside the chain that fails leaves the former ones: they are those of all other stages.
    """
    from toolkit.core.files import write_text

    former = folder.config.read_text(encoding="utf-8") if folder.config.is_file() else None
    keep_settings(config, folder)
    try:
        yield
    except Exception:
        if only_on_success and former is None:
            folder.config.unlink(missing_ok=True)
        elif only_on_success and former is not None:
            write_text(folder.config, former)
        raise


def _record(
    found: Stage, context: Context, files: StageFiles, outcome: Any, seconds: float, failed: ToolkitError | None
) -> None:
    """Write what a stage did into the manifest, and write the settings that it ran with next to it."""
    from toolkit.core.manifest import StageRecord, installed, record_file, write_manifest
    from toolkit.core.unfinished import noted, settle

    config, folder, manifest = context.config, context.folder, context.manifest
    known, written = manifest.files(), noted(folder, found.name)
    manifest.stages[found.name] = StageRecord(
        settings=settings_of(found, config),
        inputs=[record_file(path, folder, known) for path in files.inputs],
        outputs=[record_file(path, folder, written) for path in outcome.outputs],
        versions={"toolkit": __version__, **installed(LIBRARIES)},
        seconds=seconds,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        figures=outcome.figures,
        failure=failed.message if failed else "",
        warning=outcome.warning,
    )
    write_manifest(folder, manifest)
    settle(folder, found.name)
    keep_settings(config, folder)


def update_pages(config: "Config", folder: "RunFolder") -> None:
    """Write the page and the model card again; where that fails, the stage's result counts nevertheless."""
    try:
        from toolkit.report import write_pages

        write_pages(config, folder, whole_state(config, folder))
    except Exception as exc:  # whatever it is: hours of work came before
        known = explain(exc) or unexpected(exc)
        console.warn(f"the report's page was not written: {known.message}; {known.hint}".rstrip("; "))


def _page_is_newest(folder: "RunFolder") -> bool:
    """Tell whether the page was written after the manifest: a process may have died between both."""
    if not folder.page.is_file():
        return False
    return folder.page.stat().st_mtime_ns >= folder.manifest.stat().st_mtime_ns


def keep_settings(config: "Config", folder: "RunFolder") -> None:
    """Write the settings that ran last, or began to, into the run folder, unless they are there already."""
    from toolkit.core.config import SECTIONS
    from toolkit.core.config_file import starter
    from toolkit.core.files import write_text

    text = starter({section: config.section(section) for section in SECTIONS})
    try:
        there = folder.config.read_bytes()
    except FileNotFoundError:
        there = b""
    if there != text.encode("utf-8"):
        write_text(folder.config, text)


def _check_outputs(found: Stage, context: Context, files: StageFiles) -> None:
    """Raise ToolkitError rather than overwrite files that someone else wrote or changed."""
    from toolkit.core.file_changes import foreign_outputs
    from toolkit.core.unfinished import noted

    folder, record = context.folder, context.manifest.stages.get(found.name)
    names = foreign_outputs(record, folder, files.outputs, noted(folder, found.name))
    foreign = [name for name in names if not found.may_replace(context, folder.path / name)]
    if foreign:
        raise ToolkitError(
            f"`{folder.path}` holds files that {found.name} did not write, or that changed since: {', '.join(foreign)}",
            hint=f"move them away, or overwrite them with `toolkit {found.name} --force`",
        )


def _check_needs(found: Stage, context: Context) -> None:
    """Raise ToolkitError where a stage that this one cannot do without was never performed; warn of the others.

    Those that were performed are known to be fresh: `check_stages_before` has looked.
    """
    for earlier in chain(found.name):
        if earlier in context.manifest.stages:
            continue
        if earlier in found.needs:
            refuse_stale(found.name, earlier, "not run")
        else:
            console.warn(f"{earlier} was not run here: its files are used as they are")
