"""The order of the stages, what makes each one stale, and how one is performed: the manifest is kept here alone."""

import functools
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit import __version__
from toolkit.core import console
from toolkit.core.config import MEDQUAD_CSV, SECTIONS, Config
from toolkit.core.config_file import starter
from toolkit.core.errors import GATE, ToolkitError
from toolkit.core.files import read_records, write_text
from toolkit.core.manifest import (
    Manifest,
    Outcome,
    StageRecord,
    foreign_outputs,
    installed,
    path_name,
    read_manifest,
    record_file,
    why_stale,
    write_manifest,
)
from toolkit.core.run_folder import SIDES, STAGES, RunFolder, sweep
from toolkit.model import base, dequantized

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
    "ollama",
)


@dataclass(frozen=True)
class Plan:
    """What one stage would do: the settings that decide its result, the files it reads, and the files it writes."""

    settings: dict[str, Any]
    inputs: list[Path]
    outputs: list[Path]


@dataclass(frozen=True)
class Done:
    """How a stage ended: performed now, or found fresh; `why` says why it was performed."""

    stage: str
    fresh: bool
    why: str
    figures: dict[str, Any]
    seconds: float


def plan(stage: str, config: Config, folder: RunFolder) -> Plan:
    """Return what decides whether a stage is fresh; nothing heavy is imported and nothing is downloaded."""
    settings = _settings(stage, config)
    adapter = [folder.adapter / "adapter_config.json", folder.adapter / "adapter_model.safetensors"]
    files = [folder.gguf(quantization) for quantization in config.export.quantizations]
    if stage == "prepare":
        outputs = [*(folder.side(side) for side in SIDES), folder.rejected]
        return Plan(settings, [data_file(config)], outputs)
    if stage == "train":
        inputs = [folder.side("train"), folder.side("val"), *base.source_files(base.training_label(config.model))]
        return Plan(settings, inputs, [*adapter, folder.train_log, folder.loss_plot])
    merged = base.source_files(base.merge_label(config.model, config.export))
    if stage == "export":
        # The importance matrix is computed from the training split.
        weighed = ([folder.side("train")], [folder.imatrix]) if config.export.imatrix else ([], [])
        return Plan(settings, [*adapter, *merged, *weighed[0]], [*files, *weighed[1]])
    if stage == "validate":
        from toolkit.model import merge_base

        bases = [*merged, *merge_base.other_files(config.model, config.export)]
        return Plan(settings, [*files, *adapter, folder.side("test"), *bases], [folder.report, folder.card])
    return Plan(settings, [*files, folder.side("test")], [folder.modelfile])


def _settings(stage: str, config: Config) -> dict[str, Any]:
    """Flatten the settings that decide a stage's result into `section.key` → value."""
    keys = {
        "prepare": ("data", "prompt", "model.base", "model.revision", "train.max_length"),
        "train": ("train", "prompt", "model.base", "model.revision", "model.load_in_4bit"),
        "export": (
            *("run.name", "prompt", "model", "export.quantizations"),
            *("export.merge_base", "export.overrides", "export.imatrix"),
        ),
        "validate": ("validate", "prompt", "model", "export", "run.name", "ollama.name"),
        "register": ("ollama", "prompt", "export", "run.name", "train.max_length", "validate.questions"),
    }[stage]
    flat: dict[str, Any] = {}
    for key in keys:
        section, _, name = key.partition(".")
        values = config.section(section)
        flat.update({f"{section}.{item}": values[item] for item in ([name] if name else values)})
    for idle in ("train.save_steps", "train.eval_steps", "train.report_to", "ollama.timeout"):
        flat.pop(idle, None)  # these change how a stage runs, not what comes out
    return flat


def data_file(config: Config) -> Path:
    """Return where the data file is, or will be once MedQuAD is downloaded."""
    return MEDQUAD_CSV if config.data.source == "medquad" else Path(config.data.source).expanduser()


def state(config: Config, folder: RunFolder) -> dict[str, str]:
    """Say for each stage why it must run again; an empty string means fresh. A stage behind a stale one is stale."""
    manifest = read_manifest(folder)
    reasons: dict[str, str] = {}
    behind = ""
    for stage in STAGES:
        reasons[stage] = _why(stage, config, folder, manifest) or (f"{behind} comes first" if behind else "")
        if reasons[stage]:
            behind = stage
    return reasons


def is_fresh(stage: str, config: Config, folder: RunFolder) -> bool:
    """Tell whether `perform` would skip this stage; the stages before it are not looked at."""
    return not _why(stage, config, folder, read_manifest(folder))


def _why(stage: str, config: Config, folder: RunFolder, manifest: Manifest) -> str:
    record = manifest.stages.get(stage)
    if record is None:
        return "not run"
    try:
        todo = plan(stage, config, folder)
    except ToolkitError as exc:  # the base went away: whoever runs the stage is told in full
        return exc.message
    why = why_stale(record, folder, todo.settings, todo.inputs, todo.outputs)
    return why or (_unregistered(config, record) if stage == "register" else "")


def _unregistered(config: Config, record: StageRecord) -> str:
    """Say that the server does not hold the model any more; where no server answers, the record is believed."""
    from toolkit.register.status import lost

    try:
        return lost(config, record.figures)
    except ToolkitError:
        return ""


def perform(
    stage: str, config: Config, folder: RunFolder, *, force: bool = False, offline: bool = False, gpus: int = 1
) -> Done:
    """Run one stage unless it is fresh, and record it in the manifest only when it succeeded.

    Raises ToolkitError if an earlier stage's files are missing, or if it would overwrite files that it did not write.
    """
    sweep(folder)
    manifest = read_manifest(folder)
    why = _why(stage, config, folder, manifest)
    if not why and not force:
        return Done(stage, True, "", manifest.stages[stage].figures, 0.0)
    why = why or "--force"
    if stage == "prepare":
        from toolkit.prepare.source import locate

        locate(config.data, offline=offline)
    todo = plan(stage, config, folder)
    _check_inputs(stage, todo, folder)
    foreign = foreign_outputs(manifest.stages.get(stage), folder, todo.outputs)
    if path_name(folder.imatrix, folder) in foreign:
        from toolkit.export.stage import kept_imatrix

        # An export that did not come to its end leaves this one file whole, for the next one to take up.
        foreign = [name for name in foreign if name != path_name(folder.imatrix, folder) or not kept_imatrix(folder)]
    if foreign and not force and not (stage == "register" and _is_our_modelfile(config, folder)):
        raise ToolkitError(
            f"`{folder.path}` holds files that {stage} did not write in their present form: {', '.join(foreign)}",
            hint=f"move them away, or overwrite them with `toolkit {stage} --force`",
        )
    if stage == "register" and not force:
        _check_validated(config, folder, manifest)
    console.say(f"\n{stage} ({'first time' if why == 'not run' else why})")
    started = time.monotonic()
    failed: ToolkitError | None = None
    try:
        room = functools.partial(_train, gpus=gpus) if gpus > 1 else ROOMS[stage]
        outcome = room(config, folder, manifest, force)
    except ToolkitError as exc:
        if exc.exit_code != GATE:
            raise
        failed, outcome = exc, Outcome(todo.outputs, {})  # the report is there, and it says no
    seconds = round(time.monotonic() - started, 2)
    known = [file for record in manifest.stages.values() for file in (*record.inputs, *record.outputs)]
    manifest.stages[stage] = StageRecord(
        settings=todo.settings,
        inputs=[record_file(path, folder, known) for path in todo.inputs],
        outputs=[record_file(path, folder) for path in outcome.outputs],
        versions={"toolkit": __version__, **installed(LIBRARIES)},
        seconds=seconds,
        finished=time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        figures=outcome.figures,
        failure=failed.message if failed else "",
    )
    write_manifest(folder, manifest)
    write_text(folder.config, starter({name: config.section(name) for name in SECTIONS}))
    if failed:
        raise failed
    return Done(stage, False, why, outcome.figures, seconds)


def _is_our_modelfile(config: Config, folder: RunFolder) -> bool:
    """Say whether the Modelfile is what register would write: `toolkit modelfile` prints it, and a kill leaves it."""
    from toolkit.register.model_spec import describe

    return folder.modelfile.read_bytes() == describe(config, folder, _eos(config, folder)).text.encode()


def _check_validated(config: Config, folder: RunFolder, manifest: Manifest) -> None:
    """Keep a file that nobody compared with the trained model from being served."""
    why = _why("validate", config, folder, manifest)
    if why:
        raise ToolkitError(
            f"the GGUF files are not validated: {why}",
            hint="run `toolkit validate` first, or register them all the same with --force",
        )


def _check_inputs(stage: str, todo: Plan, folder: RunFolder) -> None:
    missing = [path for path in todo.inputs if not path.is_file()]
    if not missing:
        return
    if stage == "prepare":
        raise ToolkitError(
            f"no data file `{missing[0]}`", hint="set `data.source` to your file of questions and answers"
        )
    writer = {"data": "prepare", "adapter": "train", "gguf": "export"}.get(missing[0].parent.name, "prepare")
    raise ToolkitError(f"{stage} needs `{missing[0]}`, which is not there", hint=f"run `toolkit {writer}` first")


# One function a stage: it fetches what its room needs and calls the room.


def _prepare(config: Config, folder: RunFolder, manifest: Manifest, force: bool) -> Outcome:
    from toolkit.prepare import prepare
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    found = base.resolve(base.training_label(config.model), config.model.revision, weights=False)
    tokenizer = load_tokenizer(found.folder, prompt_format(config.prompt))
    return prepare(config, folder, data_file(config), tokenizer)


def _train(config: Config, folder: RunFolder, manifest: Manifest, force: bool, gpus: int = 1) -> Outcome:
    from toolkit.train.launch import run_training

    found = base.resolve(base.training_label(config.model), config.model.revision)
    return run_training(config, folder, found, restart=force, gpus=gpus)


def _export(config: Config, folder: RunFolder, manifest: Manifest, force: bool) -> Outcome:
    from toolkit.export.stage import export_run

    return export_run(config, folder, manifest, force)


def _validate(config: Config, folder: RunFolder, manifest: Manifest, force: bool) -> Outcome:
    from toolkit.model import merge_base
    from toolkit.validate import validate

    found = merge_base.resolve(config.model, config.export)
    other = merge_base.other(config.model, config.export, manifest.stages.get("train"))
    return validate(config, folder, replace(found, folder=dequantized.plain_folder(found.folder)), manifest, other)


def _register(config: Config, folder: RunFolder, manifest: Manifest, force: bool) -> Outcome:
    from toolkit.register import register

    files = {quantization: folder.gguf(quantization) for quantization in config.export.quantizations}
    known = manifest.stages["export"].outputs if "export" in manifest.stages else []
    digests = {name: record_file(path, folder, known).sha256 for name, path in files.items()}
    held_out = read_records(folder.side("test"))
    return register(config, folder, _eos(config, folder), files, digests, held_out, force=force)


def _eos(config: Config, folder: RunFolder) -> str:
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    return load_tokenizer(folder.adapter, prompt_format(config.prompt)).eos_text


ROOMS: dict[str, Callable[[Config, RunFolder, Manifest, bool], Outcome]] = {
    "prepare": _prepare,
    "train": _train,
    "export": _export,
    "validate": _validate,
    "register": _register,
}
