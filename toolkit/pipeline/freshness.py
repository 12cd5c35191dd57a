"""Which stages are fresh or stale, and why: the manifest is compared with the present files and settings."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core.errors import ToolkitError
from toolkit.core.stage import StageFiles, nothing
from toolkit.pipeline import BESIDE, STAGES, chain, deciding, settings_of, stage

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Manifest
    from toolkit.core.run_folder import RunFolder


@dataclass(frozen=True)
class Planned:
    """What a stage would do now: why it would run, empty where it is fresh, and its files.

    `problem` says why its files are not known.
    """

    why: str
    files: StageFiles
    problem: ToolkitError | None = None


def look(name: str, config: "Config", folder: "RunFolder", manifest: "Manifest") -> Planned:
    """Look at one stage alone; a base that is gone is a problem that running the stage reports in full."""
    from toolkit.core.file_changes import why_stale

    record, found = manifest.stages.get(name), stage(name)
    try:
        files = found.files(config, folder)
    except ToolkitError as exc:
        return Planned("not run" if record is None else exc.message, StageFiles([], []), exc)
    if record is None:
        return Planned("not run", files)
    # An earlier version may have recorded settings that decide nothing today.
    record = record.model_copy(update={"settings": deciding(found, record.settings)})
    why = why_stale(record, folder, settings_of(found, config), files.inputs, files.outputs)
    return Planned(why or found.lost(config, record), files)


def look_at_all(config: "Config", folder: "RunFolder") -> dict[str, Planned]:
    """Look at the stages of the chain; one after a stale one is stale."""
    from toolkit.core.manifest import read_manifest

    manifest, found, behind = read_manifest(folder), dict[str, Planned](), ""
    for name in STAGES:
        one = look(name, config, folder, manifest)
        if not one.why and behind:
            one = Planned(f"{behind} comes first", one.files)
        found[name] = one
        behind = name if one.why else behind
    return found


def state(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say for each stage why it must run again; an empty string means fresh. A stage after a stale one is stale."""
    return {name: one.why for name, one in look_at_all(config, folder).items()}


def state_beside(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say the same as `state` of the stages beside the chain; what was never recorded does not count before them."""
    from toolkit.core.manifest import read_manifest

    manifest, found = read_manifest(folder), {}
    for name in BESIDE:
        earlier = [other for other in chain(name) if other in manifest.stages]
        behind = next((other for other in earlier if look(other, config, folder, manifest).why), "")
        found[name] = look(name, config, folder, manifest).why or (f"{behind} comes first" if behind else "")
    return found


def whole_state(config: "Config", folder: "RunFolder") -> dict[str, str]:
    """Say the same as `state` of every stage, those beside the chain too."""
    return state(config, folder) | state_beside(config, folder)


def check_stages_before(name: str, config: "Config", folder: "RunFolder") -> None:
    """Raise ToolkitError where a stage before this one is out of date: what it left is not what was asked for.

    A stage that was never recorded does not count: its files may be somebody's own.
    """
    from toolkit.core.manifest import read_manifest

    manifest = read_manifest(folder)
    for earlier in chain(name):
        if earlier in manifest.stages:
            refuse_stale(name, earlier, look(earlier, config, folder, manifest).why)


def refuse_stale(name: str, earlier: str, why: str) -> None:
    """Raise ToolkitError where a stage before this one is stale, and say which command comes first."""
    if why:
        said = stage(name).needs.get(earlier, f"{earlier} is out of date")
        raise ToolkitError(
            f"{said}: {why}",
            hint=f"run `toolkit {earlier}` first (`toolkit run` does all that is out of date), "
            f"or run {name} anyway with --force",
        )


def check_plan(names: Iterable[str], found: dict[str, Planned], config: "Config") -> None:
    """Raise ToolkitError where one of several stages could not be performed, as performing them would.

    It lacks what the settings name, or a file that neither it fetches nor an earlier one of them writes.
    """
    written: set[Path] = set()
    for name in names:
        one = found[name]
        if one.why:
            stage(name).given(config)
        if one.problem is not None:
            raise one.problem
        if stage(name).before is nothing:
            check_inputs(name, [path for path in one.files.inputs if path not in written])
        written |= {*one.files.outputs}


def check_inputs(name: str, inputs: Iterable[Path]) -> None:
    """Raise ToolkitError where an input is missing, and say which stage writes it."""
    missing: list[Path] = [path for path in inputs if not path.is_file()]
    if missing:
        writer = {"data": "prepare", "adapter": "train", "gguf": "export"}.get(missing[0].parent.name, "prepare")
        raise ToolkitError(f"{name} needs `{missing[0]}`, which does not exist", hint=f"run `toolkit {writer}` first")
