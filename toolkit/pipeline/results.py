"""What the stages of a `Run` return: figures and paths, and the text that the command line prints."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.pipeline import stage

if TYPE_CHECKING:
    from toolkit.core.run_folder import RunFolder


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
