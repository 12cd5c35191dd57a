"""The order of the stages, what makes each one stale, and how one is performed: the manifest is kept here alone."""

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit import __version__
from toolkit.core import console
from toolkit.core.errors import GATE, MISSING, ToolkitError, explain, unexpected
from toolkit.core.stage import Check, Context, Stage, StageFiles, nothing

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Manifest
    from toolkit.core.run_folder import RunFolder

# The stages in their order, each with its help on the command line and an example; the rest of its record, which takes
# longer to load, is in `toolkit/NAME/stage.py`.
STAGES = {
    "prepare": ("Read, clean, de-duplicate and split the data.", "toolkit prepare --set data.source=questions.csv"),
    "train": ("Fine-tune the base model with LoRA.", "toolkit train --set train.max_steps=100"),
    "export": ("Merge, and write all GGUF quantizations.", "toolkit export --adapter DIR --base DIR --output DIR"),
    "validate": ("Compare each GGUF with the trained model.", "toolkit validate --set validate.rows=20"),
    "register": ("Create the model in Ollama, and prove it there.", "toolkit register --set ollama.name=medassist"),
}
# Beside the chain: `run` does not perform them, and nothing waits for them.
BESIDE = {
    "evaluate": (
        "Ask base, trained model and GGUF files the same questions, and compare.",
        "toolkit evaluate --set evaluate.questions=20",
    ),
}
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


@dataclass(frozen=True)
class Done:
    """How a stage ended: performed now, or found fresh; `why` says why it was performed.

    `figures` are those of the manifest, `files` what the stage wrote. `warning` says what is wrong with a result that
    exists nevertheless, `warnings` holds all that came on the way. `summary` is the text of the figures.
    """

    stage: str
    fresh: bool
    why: str
    figures: dict[str, Any] = field(repr=False)
    seconds: float
    warning: str = ""
    files: tuple[Path, ...] = field(default=(), repr=False)
    warnings: tuple[str, ...] = ()
    summary: str = field(default="", repr=False)

    def __str__(self) -> str:
        """Return the text of the figures."""
        return self.summary


def stage(name: str) -> Stage:
    """Return a stage's record."""
    found: Stage = import_module(f"toolkit.{name}.stage").STAGE
    return found


def records(names: Iterable[str]) -> list[Stage]:
    """Return the records of several stages, in the order of their names."""
    return [stage(name) for name in names]


def settings_of(found: Stage, config: "Config") -> dict[str, Any]:
    """Flatten the settings that decide a stage's result into `section.key` → value."""
    flat: dict[str, Any] = {}
    for key in found.settings:
        section, _, name = key.partition(".")
        values = config.section(section)
        flat.update({f"{section}.{item}": values[item] for item in ([name] if name else values)})
    return {key: value for key, value in flat.items() if key not in found.idle}


def refusal(config: "Config", *, offline: bool) -> Check | None:
    """Ask every stage whether it could use the model that these settings train; return the first refusal.

    Small files of a hub id are fetched for it, unless `offline`, and no weight is read.
    """
    found = (stage(name).foresee(config, offline) for name in STAGES)
    return next((check for check in found if check is not None and check.ok is False), None)


def check_usable(config: "Config", *, offline: bool, adapter_alone: bool = True) -> None:
    """Raise ToolkitError (exit 3) where a model that these settings train could not be used.

    Where an `adapter_alone` is of use, train.allow_unexportable makes that a warning.
    """
    found = refusal(config, offline=offline)
    if found is None:
        return
    if adapter_alone and config.train.allow_unexportable:
        console.warn(f"the trained model cannot be exported: {found.found}")
        return
    raise ToolkitError(f"the trained model cannot be exported: {found.found}", hint=found.fix, exit_code=MISSING)


def ends_with_adapter(config: "Config", *, offline: bool) -> str:
    """Say why training is the last stage, as train.allow_unexportable asks; empty where others follow."""
    found = refusal(config, offline=offline) if config.train.allow_unexportable else None
    return found.found if found is not None else ""


def chain(name: str) -> list[str]:
    """Return the stages that come before one, in order; before one beside the chain, those up to what it needs."""
    if name in STAGES:
        return [*itertools.takewhile(lambda other: other != name, STAGES)]
    last = max(map([*STAGES].index, stage(name).needs), default=-1)
    return [*STAGES][: last + 1]


def state_beside(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say the same as `state` of the stages beside the chain; what was never recorded does not count before them."""
    from toolkit.core.manifest import read_manifest

    manifest, found = read_manifest(folder), {}
    for name in BESIDE:
        earlier = [other for other in chain(name) if other in manifest.stages]
        behind = next((other for other in earlier if _why(other, config, folder, manifest)), "")
        found[name] = _why(name, config, folder, manifest) or (f"{behind} comes first" if behind else "")
    return found


def state(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say for each stage why it must run again; an empty string means fresh. A stage after a stale one is stale."""
    from toolkit.core.manifest import read_manifest

    manifest = read_manifest(folder)
    reasons: dict[str, str] = {}
    behind = ""
    for name in STAGES:
        reasons[name] = _why(name, config, folder, manifest) or (f"{behind} comes first" if behind else "")
        if reasons[name]:
            behind = name
    return reasons


def _why(name: str, config: "Config", folder: "RunFolder", manifest: "Manifest") -> str:
    from toolkit.core.manifest import why_stale

    record, found = manifest.stages.get(name), stage(name)
    if record is None:
        return "not run"
    try:
        files = found.files(config, folder)
    except ToolkitError as exc:  # the base is gone: running the stage reports it in full
        return exc.message
    why = why_stale(record, folder, settings_of(found, config), files.inputs, files.outputs)
    return why or found.lost(config, record)


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
    from toolkit.core.manifest import Outcome, read_manifest, seen_again, write_manifest
    from toolkit.core.run_folder import sweep
    from toolkit.core.unfinished import noting, settle

    sweep(folder)
    manifest, found = read_manifest(folder), stage(name)
    why = _why(name, config, folder, manifest)
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
    found.before(context)
    planned = found.files(config, folder)
    _check_inputs(name, planned)
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


def whole_state(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say the same as `state` of every stage, those beside the chain too."""
    return state(config, folder) | state_beside(config, folder)


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
    from toolkit.core.manifest import foreign_outputs
    from toolkit.core.unfinished import noted

    folder, record = context.folder, context.manifest.stages.get(found.name)
    names = foreign_outputs(record, folder, files.outputs, noted(folder, found.name))
    foreign = [name for name in names if not found.may_replace(context, folder.path / name)]
    if foreign:
        raise ToolkitError(
            f"`{folder.path}` holds files that {found.name} did not write, or that changed since: {', '.join(foreign)}",
            hint=f"move them away, or overwrite them with `toolkit {found.name} --force`",
        )


def check_stages_before(name: str, config: "Config", folder: "RunFolder") -> None:
    """Raise ToolkitError where a stage before this one is out of date: what it left is not what was asked for.

    A stage that was never recorded does not count: its files may be somebody's own.
    """
    from toolkit.core.manifest import read_manifest

    manifest = read_manifest(folder)
    for earlier in chain(name):
        if earlier in manifest.stages:
            _refuse_stale(name, earlier, _why(earlier, config, folder, manifest))


def _check_needs(found: Stage, context: Context) -> None:
    """Raise ToolkitError where a stage that this one cannot do without was never performed; warn of the others.

    Those that were performed are known to be fresh: `check_stages_before` has looked.
    """
    for earlier in chain(found.name):
        if earlier in context.manifest.stages:
            continue
        if earlier in found.needs:
            _refuse_stale(found.name, earlier, "not run")
        else:
            console.warn(f"{earlier} was not run here: its files are used as they are")


def _refuse_stale(name: str, earlier: str, why: str) -> None:
    if why:
        said = stage(name).needs.get(earlier, f"{earlier} is out of date")
        raise ToolkitError(
            f"{said}: {why}",
            hint=f"run `toolkit {earlier}` first (`toolkit run` does all that is out of date), "
            f"or run {name} anyway with --force",
        )


def planned_files(names: Iterable[str], config: "Config", folder: "RunFolder") -> dict[str, StageFiles]:
    """Return what each of several stages would read and write, in their order.

    Raises ToolkitError where one lacks a file that neither it fetches nor an earlier one of them writes.
    """
    found: dict[str, StageFiles] = {}
    for name in names:
        files = stage(name).files(config, folder)
        if stage(name).before is nothing:
            written = {path for earlier in found.values() for path in earlier.outputs}
            _check_inputs(name, StageFiles([path for path in files.inputs if path not in written], []))
        found[name] = files
    return found


def _check_inputs(name: str, files: StageFiles) -> None:
    missing: list[Path] = [path for path in files.inputs if not path.is_file()]
    if missing:
        writer = {"data": "prepare", "adapter": "train", "gguf": "export"}.get(missing[0].parent.name, "prepare")
        raise ToolkitError(f"{name} needs `{missing[0]}`, which does not exist", hint=f"run `toolkit {writer}` first")
