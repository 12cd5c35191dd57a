"""What the calls of a `Run` return: figures and paths, and the text that the command line prints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import console
from toolkit.core.learned import unmeasured
from toolkit.core.stage import Check
from toolkit.pipeline import Done, stage

if TYPE_CHECKING:
    from toolkit.core.manifest import Manifest
    from toolkit.core.run_folder import RunFolder


@dataclass(frozen=True, kw_only=True)
class Prepared(Done):
    """The records in their three splits, and the rows that were refused; `kept` of `rows` are in the splits."""

    train: Path
    val: Path
    test: Path
    rejected: Path
    rows: int
    kept: int


@dataclass(frozen=True, kw_only=True)
class Trained(Done):
    """The adapter, its log and loss curve, and the held-out losses (nats per token), None where not measured."""

    adapter: Path
    log: Path
    loss_plot: Path
    steps: int
    resumed_at_step: int
    held_out_loss_before: float | None
    held_out_loss_after: float | None


@dataclass(frozen=True, kw_only=True)
class Exported(Done):
    """The GGUF file of each quantization."""

    gguf: dict[str, Path]


@dataclass(frozen=True, kw_only=True)
class Validated(Done):
    """The report and model card; by quantization the mean KL divergence (nats), None where it cannot be measured."""

    report: Path
    model_card: Path
    mean_kl: dict[str, float | None]


@dataclass(frozen=True, kw_only=True)
class Evaluated(Done):
    """What all systems answered; `comparisons` are those of evaluation.json, of answers and of tasks."""

    evaluation: Path
    comparisons: tuple[dict[str, Any], ...]


@dataclass(frozen=True, kw_only=True)
class Registered(Done):
    """The model's name in Ollama, the server, and the digest of each tag; `modelfile` makes the same model."""

    name: str
    server: str
    tags: dict[str, str]
    modelfile: Path


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


def result_of(done: Done, folder: "RunFolder", warnings: Iterable[str]) -> Done:
    """Return a stage's outcome as the type of that stage, with all warnings of the call and its text."""
    known: dict[str, Any] = {each.name: getattr(done, each.name) for each in fields(done)}
    known["warnings"] = tuple(dict.fromkeys(warnings))
    known["summary"] = stage(done.stage).summary(done.figures, folder)
    kind, more = _KINDS.get(done.stage, (Done, lambda *_: {}))
    made: Done = kind(**known, **more(done.figures, folder))
    return made


def _prepared(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    splits = {name: folder.split_file(name) for name in ("train", "val", "test")}
    return {**splits, "rejected": folder.rejected, "rows": figures.get("rows", 0), "kept": figures.get("kept", 0)}


def _trained(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    return {
        "adapter": folder.adapter,
        "log": folder.train_log,
        "loss_plot": folder.loss_plot,
        "steps": figures.get("steps", 0),
        "resumed_at_step": figures.get("resumed_at_step", 0),
        "held_out_loss_before": figures.get("held_out_loss_before"),
        "held_out_loss_after": figures.get("held_out_loss_after"),
    }


def _exported(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    return {"gguf": {name: folder.gguf(name) for name, value in figures.items() if isinstance(value, dict)}}


def _validated(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    distances = {name: values["mean_kl"] for name, values in figures.get("quantizations", {}).items()}
    return {"report": folder.report, "model_card": folder.model_card, "mean_kl": distances}


def _evaluated(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    tasks = (one for task in figures.get("choice", []) for one in task["comparisons"])
    return {
        "evaluation": folder.evaluation,
        "comparisons": (*figures.get("held_out", {}).get("comparisons", []), *tasks),
    }


def _registered(figures: dict[str, Any], folder: "RunFolder") -> dict[str, Any]:
    tags = {tag: values["digest"] for tag, values in figures.get("tags", {}).items()}
    return {
        "name": figures.get("name", ""),
        "server": figures.get("server", ""),
        "tags": tags,
        "modelfile": folder.modelfile,
    }


_KINDS: dict[str, tuple[type[Done], Callable[[dict[str, Any], "RunFolder"], dict[str, Any]]]] = {
    "prepare": (Prepared, _prepared),
    "train": (Trained, _trained),
    "export": (Exported, _exported),
    "validate": (Validated, _validated),
    "register": (Registered, _registered),
    "evaluate": (Evaluated, _evaluated),
}


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
