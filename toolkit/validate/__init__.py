"""The validate stage: the GGUF files in llama.cpp against the trained model in transformers, on held-out records."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import GATE, MISSING, ToolkitError
from toolkit.core.files import write_text
from toolkit.core.learned import is_spoiled
from toolkit.core.manifest import FileRecord, Manifest, Outcome, StageRecord, path_name, record_file
from toolkit.core.output_settings import ValidateSettings
from toolkit.core.records import spread
from toolkit.core.run_folder import RunFolder
from toolkit.model.base import Base
from toolkit.model.hub_range import HubShards
from toolkit.model.licence import licence_of
from toolkit.model.merge_base import OtherBase
from toolkit.prompt import held_out
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer as load
from toolkit.report.words import penalty_sentence
from toolkit.validate import gguf, reference
from toolkit.validate.layers import open_trained, untrained_answers
from toolkit.validate.metrics import KL_EDGES, perplexity
from toolkit.validate.pace import choose_rows
from toolkit.validate.report import (
    learned_entry,
    merge_entry,
    penalty_entry,
    quantization_entry,
    report_table,
    row_entries,
    versions,
)

__all__ = ["report_table", "validate"]

REPORT_VERSION = 1


def validate(
    config: Config,
    folder: RunFolder,
    base: Base,
    manifest: Manifest,
    other: OtherBase | None = None,
    shards: HubShards | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> Outcome:
    """Score every GGUF against base + adapter on held-out rows; write `report.json`.

    `base` is the one that was merged into; with `shards` its weights are fetched from the hub when they are used.
    `other` is another base that the adapter was trained on, or could have been merged into. The cost of that choice is
    measured, but is not part of the verdicts. `clock` (seconds) decides the number of rows.
    `toolkit/report/report_file.py` describes the fields of report.json.

    Raises ToolkitError (exit 4), after the report is written, if a mean KL is over its bound or a GGUF differs in any
    prompt's ids, EOS, BOS or chat template.
    """
    files = {name: folder.gguf(name) for name in config.export.quantizations}
    missing = [str(path) for path in files.values() if not path.is_file()]
    if missing:
        raise ToolkitError(f"no GGUF file `{missing[0]}`", hint="write it with `toolkit export`", exit_code=MISSING)
    settings, form = config.validation, prompt_format(config.prompt)
    tokenizer = load(base.folder, form)
    records = held_out.read_held_out(folder.split_file("test"), form, tokenizer)
    prompts = [render(form, question, settings.instruction) for question in settings.questions]
    known = manifest.files()

    found: dict[str, gguf.Measurement] = {}
    layers = open_trained(base.folder, folder.adapter, shards)
    if settings.rows == "auto":
        scored = choose_rows(records, layers, files[config.export.default], folder.path, clock)
    else:
        scored = spread(records, settings.rows)
    before = _answers_before(settings, manifest.stages.get("train"))
    if None in before:
        before = untrained_answers(layers, tokenizer, prompts, settings.answer_tokens, form.stops)
    with reference.measured(layers, scored, folder.path, other) as trained:
        for name, path in files.items():
            asked = prompts if name == config.export.default else []
            found[name] = gguf.measure(
                path,
                name,
                records,
                scored,
                trained.logits,
                tokenizer,
                chat_template(form, bos=tokenizer.bos is not None),
                asked,
                settings.answer_tokens,
                form.stops,
                config.ollama.repeat_penalty if name == config.export.default else 1.0,
            )
    default = found[config.export.default]
    learned, warnings = learned_entry(scored, trained.base_nll, trained.nll, manifest.stages.get("train"))
    entries = {
        name: quantization_entry(name, record_file(path, folder, known), found[name], settings.bound(name), scored)
        for name, path in files.items()
    }
    report: dict[str, Any] = {
        "version": REPORT_VERSION,
        "run": folder.name,
        "passed": all(entry["passed"] for entry in entries.values()),
        "versions": versions(),
        "base": {"label": base.label, "commit": base.commit, "licence": licence_of(base.folder)},
        "held_out": {
            "rows": len(records),
            "rows_scored": len(scored),
            "tokens_scored": len(trained.nll),
        },
        "reference": {
            "dtype": "float32",
            "device": trained.device,
            "perplexity": perplexity(trained.nll),
            "base_perplexity": perplexity(trained.base_nll),
        },
        "learned": learned,
        "warnings": warnings,
        "kl_edges": list(KL_EDGES),
        "quantizations": entries,
        "merge": merge_entry(other, trained.merge),
        "penalty": penalty_entry(config.export.default, config.ollama.repeat_penalty, default),
        "answers": [
            {"question": question, "instruction": settings.instruction, "before": first, "after": after}
            for question, first, after in zip(settings.questions, before, default.answers, strict=True)
        ],
        "rows": row_entries(scored, default),
        "sources": _sources(folder, manifest, known),
    }
    text = json.dumps(report, ensure_ascii=False, indent=1, allow_nan=False) + "\n"
    write_text(folder.report, text)
    if report["penalty"]:
        console.warn(penalty_sentence(report["penalty"]))
    _gate(report, folder)
    figures = {
        **report["held_out"],
        "reference_perplexity": report["reference"]["perplexity"],
        "base_perplexity": report["reference"]["base_perplexity"],
        "quantizations": _plain(report),
        "learned": report["learned"],
        "merge": report["merge"],
        "penalty": report["penalty"],
        "answers": report["answers"],
    }
    return Outcome([folder.report], figures, warnings[0] if warnings else "")


def _answers_before(settings: ValidateSettings, record: StageRecord | None) -> list[str | None]:
    """Return the base's answers that training left, each None if it was not asked that."""
    kept = (record.figures.get("answers") if record else None) or []
    known = {(one["question"], one["instruction"], one["tokens"]): one["before"] for one in kept}
    return [known.get((question, settings.instruction, settings.answer_tokens)) for question in settings.questions]


def _plain(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the table's values by quantization."""
    keys = ("bytes", "mean_kl", "mean_kl_low", "mean_kl_high", "kl_99", "top1", "perplexity", "bound", "passed")
    return {name: {key: entry[key] for key in keys} for name, entry in report["quantizations"].items()}


def _sources(folder: RunFolder, manifest: Manifest, known: list[FileRecord]) -> dict[str, str]:
    """Collect the SHA-256 of the held-out records and the adapter, and of the recorded inputs of export and prepare."""
    paths = [
        folder.split_file("test"),
        folder.adapter / "adapter_config.json",
        folder.adapter / "adapter_model.safetensors",
    ]
    hashes = {path_name(path, folder): record_file(path, folder, known).sha256 for path in paths}
    for stage in ("prepare", "export"):
        if stage in manifest.stages:
            for file in manifest.stages[stage].inputs:
                name = file.path if not Path(file.path).is_absolute() else Path(file.path).name
                hashes.setdefault(name, file.sha256)
    return hashes


def _gate(report: dict[str, Any], folder: RunFolder) -> None:
    """Raise ToolkitError (exit 4) that names every quantization that failed, and its problems."""
    failed = {name: entry["problems"] for name, entry in report["quantizations"].items() if not entry["passed"]}
    if not failed:
        return
    console.info(report_table(report))
    listed = "\n".join(f"  {name}: {'; '.join(problems)}" for name, problems in failed.items())
    # An unquantized file loses nothing: if it is far off, it holds other weights.
    only_distance = all(
        name not in ("F32", "F16", "BF16") and len(problems) == 1 and "over its bound" in problems[0]
        for name, problems in failed.items()
    )
    advice = "write the GGUF files again with `toolkit export --force`; if it still fails, the base is the wrong one"
    if is_spoiled(report["learned"]["test"]) and report["warnings"]:
        advice = f"the trained model itself is spoiled, which no other file mends: {report['warnings'][0]}"
    elif only_distance:
        advice = (
            "choose a finer quantization, or raise its bound in `validate.max_kl` if that distance is acceptable to you"
        )
    raise ToolkitError(
        f"{len(failed)} of {len(report['quantizations'])} quantizations do not match the trained model:\n{listed}",
        hint=f"see `{folder.report}`; {advice}",
        exit_code=GATE,
        details={"quantizations": _plain(report), "problems": failed},
    )
