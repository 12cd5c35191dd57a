"""What the other calls of a `Run` return: a whole run, an answer, the pages, what doctor and status found."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import console
from toolkit.core.learned import unmeasured
from toolkit.core.stage import Check
from toolkit.pipeline.results import Done

if TYPE_CHECKING:
    from toolkit.core.manifest import Manifest


@dataclass(frozen=True)
class Finished:
    """A whole run: its stages in order, of which some were fresh; without a server `registered` is False."""

    stages: tuple[Done, ...]
    folder: Path
    registered: bool
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the line that the command line prints: what was done, and how long each stage took."""
        performed = [done for done in self.stages if not done.fresh]
        if not performed:
            which = ", ".join(done.stage for done in self.stages)
            said = "all stages are fresh" if self.registered else f"nothing to do, fresh already: {which}"
            return f"{said}: {self.folder}"
        times = ", ".join(f"{done.stage} {console.duration(done.seconds)}" for done in performed)
        return f"done in {console.duration(sum(done.seconds for done in performed))} ({times}): {self.folder}"


@dataclass(frozen=True)
class Answer:
    """An answer, and what gave it: `ollama` or `llama.cpp`."""

    question: str
    text: str
    through: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the answer."""
        return self.text


@dataclass(frozen=True)
class Reported:
    """The page of a run, and its model card, None where nothing was validated yet."""

    page: Path
    model_card: Path | None
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the paths that the command line prints."""
        return "\n".join(str(path) for path in (self.page, self.model_card) if path is not None)


@dataclass(frozen=True)
class Compared:
    """Two runs beside each other: the page, the tables that the command line prints, and the same for a script."""

    page: Path
    text: str = field(repr=False)
    figures: dict[str, Any] = field(repr=False)
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the tables, and the page's path."""
        return f"{self.text}\n\n{self.page}"


@dataclass(frozen=True)
class Findings:
    """What the doctor found; each failed check (`ok` is False) says what to do in `fix`."""

    checks: tuple[Check, ...]
    warnings: tuple[str, ...]

    @property
    def failed(self) -> list[Check]:
        """The checks that failed."""
        return [check for check in self.checks if check.ok is False]

    def __str__(self) -> str:
        """Return the table that the command line prints."""
        from toolkit.doctor import checks_table

        return checks_table(self.checks)


@dataclass(frozen=True)
class StageState:
    """A stage's state in one word (fresh, stale, not run), why it would run, and when it ran and for how long (s)."""

    state: str
    why: str
    finished: str
    seconds: float | None
    warning: str


@dataclass(frozen=True)
class Status:
    """The state of every stage, and what the Ollama server holds under the run's name.

    `unmeasured` says that training did not measure whether the model learned, and what validation found instead.
    """

    run: str
    folder: Path
    run_id: str
    stages: dict[str, StageState]
    ollama: dict[str, Any]
    unmeasured: str
    warnings: tuple[str, ...]

    def __str__(self) -> str:
        """Return the tables that the command line prints."""
        rows, notes = [], []
        for name, one in self.stages.items():
            reason = one.why if one.state == "stale" else ""
            seconds = "" if one.seconds is None else console.duration(one.seconds)
            rows.append((name, one.state, reason, one.finished, seconds))
            notes += [f"warning: {one.warning}"] * bool(one.warning)
        text = console.table(("stage", "state", "why", "finished", "took"), rows, title=str(self.folder))
        notes += [f"train: {self.unmeasured}"] * bool(self.unmeasured)
        return "\n".join([text, *dict.fromkeys(notes), "", _held_text(self.ollama)])


def _held_text(found: dict[str, Any]) -> str:
    """Say what the server holds under the run's name, or what is wrong with it."""
    if "problem" in found:
        return f"Ollama: {found['problem']}"
    if found["version"] is None:
        return f"Ollama: no server answers at {found['server']}"
    rows = [
        (
            f"{found['name']}:{tag}",
            held["digest"][:12],
            held["state"],
            held["gguf_sha256"][:12],
            held["stored_sha256"][:12],
        )
        for tag, held in found["tags"].items()
    ]
    title = f"Ollama {found['version']} at {found['server']}"
    return console.table(("model", "id", "holds", "our GGUF", "server's GGUF"), rows, title=title)


def unmeasured_of(manifest: "Manifest", *, validated: bool) -> str:
    """Say that training did not measure whether the model learned, and what a fresh validation found instead."""
    train, checked = manifest.stages.get("train"), manifest.stages.get("validate")
    said = unmeasured(train.figures) if train else ""
    if not said:
        return ""
    found = ((checked.figures.get("learned") or {}).get("test") or {}) if checked and validated else {}
    if not found:
        return f"{said}; `toolkit validate` compares it with its base"
    after = "not finite" if found["after"] is None else f"{found['after']:.4f}"
    return f"{said}; on the test split validate found {found['verdict']}: {found['before']:.4f} → {after}"
