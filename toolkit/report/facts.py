"""All facts that the page, the model card and a comparison show, collected once from the run's own files."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.manifest import FileRecord, Manifest, StageRecord
from toolkit.core.parsing import parse_json, read_json_or_nothing
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text
from toolkit.prompt.templates import python_function
from toolkit.report.report_file import Report
from toolkit.report.sources import Evaluation, check_source, read_source

RECIPE = (
    "max_steps", "num_train_epochs", "batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_steps",
    "lr_scheduler_type", "weight_decay", "lora_dropout", "max_length", "completion_only_loss", "seed",
)  # fmt: skip
SECRET = ("ollama.host", "ollama.url")  # an address may hold a password
MOST_RECORDS = 20_000  # of each split, whose lengths are counted
MOST_STEPS = 200_000  # lines of the training log


@dataclass(frozen=True)
class StageState:
    """How one stage stands: `why` it would run again is empty where it is fresh; seconds None where it never ran."""

    name: str
    why: str
    finished: str = ""
    seconds: float | None = None
    warning: str = ""
    failure: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def state(self) -> str:
        """Say it in one word or two."""
        return "not run" if self.seconds is None else "failed" if self.failure else "stale" if self.why else "fresh"


@dataclass(frozen=True)
class Data:
    """What `prepare` did: its figures, its sources, its split, and the words of each answer by split."""

    figures: Mapping[str, Any]
    sources: list[FileRecord]
    split: Any
    seed: Any
    lengths: Mapping[str, list[int]]
    cut_short: bool  # not all records were counted

    @property
    def name(self) -> str:
        """The source's name, without its folder; of several files their number."""
        if len(self.sources) != 1:
            return f"{len(self.sources):,} files" if self.sources else ""
        return Path(self.sources[0].path).name


@dataclass(frozen=True)
class Training:
    """What `train` did: its figures, its recipe by setting, and its log."""

    figures: Mapping[str, Any]
    recipe: Mapping[str, Any]
    log: list[dict[str, Any]]
    plot: str

    @property
    def losses(self) -> tuple[float, float] | None:
        """The held-out loss before and after training (nats per token), None where one of them was not measured."""
        found = (self.figures.get("held_out_loss_before"), self.figures.get("held_out_loss_after"))
        return None if None in found else found  # type: ignore[return-value]


@dataclass(frozen=True)
class Facts:
    """A run. `problems` are files that are damaged; `raw` holds the content of the others for exact figures.

    `fits` is False where evaluation.json is of another adapter, or of other GGUF files, than those that are there.
    """

    name: str
    config: Config
    manifest: Manifest
    stages: list[StageState]
    report: Report | None
    evaluation: Evaluation | None
    fits: bool
    raw: Mapping[str, dict[str, Any]]
    problems: list[str]
    data: Data | None
    training: Training | None
    adapter: Mapping[str, Any]
    prompt: Mapping[str, str]
    settings: Mapping[str, Any]

    def record(self, stage: str) -> StageRecord | None:
        """Return what the manifest says of a stage, None where it never ran."""
        return self.manifest.stages.get(stage)


def gather(
    config: Config,
    folder: RunFolder,
    manifest: Manifest,
    reasons: Mapping[str, str] | None = None,
    report: dict[str, Any] | None = None,
) -> Facts:
    """Read what a run's files say. `reasons` say of each stage why it must run again, empty where it is fresh.

    `report` is the content of a report.json that is not written yet. What is damaged is named, never raised.
    """
    problems = []
    found, raw, problem = read_source("report", folder.report)
    if report is not None:
        found, raw, problem = check_source("report", report, folder.report)
    problems += [problem] * bool(problem)
    evaluation, raw_evaluation, problem = read_source("evaluation", folder.evaluation)
    problems += [problem] * bool(problem)
    why = dict(reasons if reasons is not None else dict.fromkeys(manifest.stages, ""))
    return Facts(
        name=folder.name,
        config=config,
        manifest=manifest,
        stages=[_stage(name, why[name], manifest.stages.get(name)) for name in why],
        report=found,
        evaluation=evaluation,
        fits=_fits(evaluation, manifest),
        raw={"report": raw, "evaluation": raw_evaluation},
        problems=problems,
        data=_data(config, folder, manifest.stages.get("prepare")),
        training=_training(folder, manifest),
        adapter=_adapter(folder.adapter / "adapter_config.json"),
        prompt=_prompt(config),
        settings=_settings(manifest),
    )


def _stage(name: str, why: str, record: StageRecord | None) -> StageState:
    if record is None:
        return StageState(name, why)
    return StageState(name, why, record.finished, record.seconds, record.warning, record.failure, record.versions)


def _fits(evaluation: Evaluation | None, manifest: Manifest) -> bool:
    """Say whether what was evaluated is what is there: the exported files, and the adapter of the trained model."""
    records = [manifest.stages[name] for name in ("train", "export") if name in manifest.stages]
    export = manifest.stages.get("export")
    written = {file.sha256 for file in export.outputs} if export else set()
    asked = {system.sha256 for system in evaluation.systems if system.sha256} if evaluation else set()
    if written and not asked <= written:
        return False
    now = {file.path: file.sha256 for record in records for file in record.outputs}
    record = manifest.stages.get("evaluate")
    return all(now.get(file.path, file.sha256) == file.sha256 for file in (record.inputs if record else []))


def _data(config: Config, folder: RunFolder, record: StageRecord | None) -> Data | None:
    if record is None:
        return None
    lengths, cut_short = {}, False
    for split in SPLITS:
        lengths[split], more = _lengths(folder.split_file(split))
        cut_short = cut_short or more
    return Data(
        record.figures,
        record.inputs,
        record.settings.get("data.split", config.data.split),
        record.settings.get("data.seed", config.data.seed),
        lengths,
        cut_short,
    )


def _lengths(path: Path) -> tuple[list[int], bool]:
    """Count the words of each answer of the first records, of chats too, and say whether there are more records.

    Of a damaged file there are none.
    """
    found: list[int] = []
    try:
        with path.open("rb") as file:
            for line in itertools.islice(file, MOST_RECORDS):
                record = parse_json(line, data=True)
                answers = [*(answer for _, answer in record.get("history", ())), record["output"]]
                found += (len(str(answer).split()) for answer in answers)
            return found, bool(file.read(1))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return [], False


def _training(folder: RunFolder, manifest: Manifest) -> Training | None:
    record, prepared = manifest.stages.get("train"), manifest.stages.get("prepare")
    if record is None:
        return None
    recipe = {key: record.settings[f"train.{key}"] for key in RECIPE if f"train.{key}" in record.settings}
    if prepared and prepared.figures.get("chats") and "train.turns" in record.settings:
        recipe["turns_learned"] = record.settings["train.turns"]
    plot = folder.loss_plot.name if folder.loss_plot.is_file() else ""
    return Training(record.figures, recipe, _log(folder.train_log), plot)


def _log(path: Path) -> list[dict[str, Any]]:
    found = []
    try:
        with path.open("rb") as file:
            for line in itertools.islice(file, MOST_STEPS):
                entry = parse_json(line, data=True)
                if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                    found.append(entry)
    except (OSError, ValueError):
        return found
    return found


def _adapter(path: Path) -> dict[str, Any]:
    values = read_json_or_nothing(path)
    targets = values.get("target_modules")
    return {
        "r": values.get("r"),
        "alpha": values.get("lora_alpha"),
        "scale": "alpha / sqrt(r)" if values.get("use_rslora") else "alpha / r",
        "targets": ", ".join(sorted(map(str, targets))) if isinstance(targets, list) else targets,
    }


def _prompt(config: Config) -> dict[str, str]:
    try:
        form = prompt_format(config.prompt)
    except ToolkitError as exc:
        return {"problem": exc.message}
    return {
        "problem": "",
        "text": prompt_text(form, "{question}", "{instruction}"),
        "instruction": form.instruction,
        "eos": form.eos,
        "function": python_function(form),
    }


def _settings(manifest: Manifest) -> dict[str, Any]:
    """Return the settings that decided the results, by key; of a place on this machine only the last name."""
    found: dict[str, Any] = {}
    for record in manifest.stages.values():
        found.update(record.settings)
    return {
        key: Path(value).name if isinstance(value, str) and value.startswith("/") else value
        for key, value in sorted(found.items())
        if key not in SECRET
    }
