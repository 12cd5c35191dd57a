"""The record of a stage. Each stage's folder has one in its `stage.py`, and the pipeline needs nothing else.

A record is made without heavy imports: what `run` and `checks` need they import themselves.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.hardware import Gpu
    from toolkit.core.manifest import Manifest, Outcome, StageRecord
    from toolkit.core.run_folder import RunFolder


@dataclass(frozen=True)
class StageFiles:
    """The files that a stage reads, and those that it writes."""

    inputs: list[Path]
    outputs: list[Path]


@dataclass(frozen=True)
class Context:
    """What a stage is performed with.

    `gpus` is the number of GPUs that were asked for, `replace` what `register --replace` names.
    """

    config: "Config"
    folder: "RunFolder"
    manifest: "Manifest"
    force: bool = False
    offline: bool = False
    gpus: int = 1
    replace: tuple[str, ...] = ()


@dataclass(frozen=True)
class Check:
    """One finding: `ok` is None where it does not apply or only informs; `fix` is a command or a setting."""

    name: str
    ok: bool | None
    found: str
    fix: str


@dataclass(frozen=True)
class Examination:
    """What a stage's checks are made with; `alone` where no other stage will be performed."""

    config: "Config"
    gpu: "Gpu | None"
    offline: bool
    alone: bool


Found = Check | list[Check]
Checks = list[tuple[str, Callable[[], Found]]]


def no_checks(_: Examination) -> Checks:
    """Check nothing."""
    return []


def nothing(_: Context) -> None:
    """Do nothing."""


def nothing_given(_: "Config") -> None:
    """Name nothing that could be missing."""


def never(_: Context, __: Path) -> bool:
    """Replace no file that the stage did not write."""
    return False


def foresees_nothing(_: "Config", __: bool) -> Check | None:
    """Refuse no model before it is trained."""
    return None


def holds_nothing(_: "Config", __: "RunFolder") -> int:
    """Hold no bytes of an interrupted run."""
    return 0


def still_there(_: "Config", __: "StageRecord") -> str:
    """Say that nothing was lost outside the run folder."""
    return ""


@dataclass(frozen=True)
class Stage:
    """One stage.

    `settings` are the sections and keys that decide its result, without `idle` ones, which only change how it runs.
    `files` says what it reads and writes, and downloads nothing. `summary` writes its figures as text. `checks` lists
    the doctor's checks, each with its name. `given` raises ToolkitError where a file that the settings name is missing.
    `before` may fetch what `files` names, `after` removes what is of no use
    once the result is recorded. `needs` are stages that must be fresh, each with the message where it is not.
    `may_replace` tells whether a file that it did not write may be replaced. `lost` says why its result is gone
    although its files are there. `held` counts the bytes on disk that an interrupted run left and the next one
    continues with. `costly`: hours may follow, so the others' `foresee` is asked first, which says whether the stage
    could use the model that these settings train (`offline` or not): a refusal has `ok` False, None is nothing known.
    `gate` raises ToolkitError where the result may not replace what is in use; it is not called with --force.
    """

    name: str
    settings: tuple[str, ...]
    files: "Callable[[Config, RunFolder], StageFiles]"
    run: "Callable[[Context], Outcome]"
    summary: "Callable[[dict[str, Any], RunFolder], str]"
    checks: Callable[[Examination], Checks] = no_checks
    idle: tuple[str, ...] = ()
    given: "Callable[[Config], object]" = nothing_given
    before: Callable[[Context], None] = nothing
    after: Callable[[Context], None] = nothing
    needs: Mapping[str, str] = field(default_factory=dict)
    may_replace: Callable[[Context, Path], bool] = never
    lost: "Callable[[Config, StageRecord], str]" = still_there
    held: "Callable[[Config, RunFolder], int]" = holds_nothing
    gate: Callable[[Context], None] = nothing
    costly: bool = False
    foresee: "Callable[[Config, bool], Check | None]" = foresees_nothing
