"""The model card: what the model is, how it was made, how close each file is to it, and what it is not for.

The text is in `toolkit/templates/model_card.md`; this module gathers its values.
"""

import shlex
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.manifest import Manifest, StageRecord
from toolkit.core.parsing import read_json
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text, python_function
from toolkit.validate.front_matter import front_matter
from toolkit.validate.markdown import environment
from toolkit.validate.report import merge_sentence, penalty_sentence

FALLBACK_QUESTION = "What are the symptoms of dehydration?"
RECIPE = (
    "max_steps", "num_train_epochs", "batch_size", "gradient_accumulation_steps", "learning_rate", "warmup_steps",
    "lr_scheduler_type", "weight_decay", "lora_dropout", "max_length", "completion_only_loss", "seed",
)  # fmt: skip


def model_card(report: dict[str, Any], config: Config, folder: RunFolder, manifest: Manifest) -> str:
    """Write the model card in Markdown, from a report and the manifest's records of earlier stages.

    Unknown values are left out, as with an adapter that was trained elsewhere.
    """
    return environment().get_template("model_card.md").render(_values(report, config, folder, manifest))


def _values(report: dict[str, Any], config: Config, folder: RunFolder, manifest: Manifest) -> dict[str, Any]:
    """Gather the template's values by name."""
    return {
        "front_matter": front_matter(report, folder.name, manifest),
        "name": folder.name,
        **{key: report[key] for key in ("base", "passed", "held_out", "reference", "answers")},
        "warnings": report.get("warnings", []),
        "names_medquad": config.data.source == "medquad",
        "use": _use(config),
        "files": report["quantizations"],
        "problems": [(name, text) for name, entry in report["quantizations"].items() for text in entry["problems"]],
        "default": config.export.default,
        "merge": merge_sentence(report["merge"]) if report.get("merge") else "",
        "penalty": penalty_sentence(report["penalty"]) if report.get("penalty") else "",
        "held_out_sha256": next((sha for name, sha in report["sources"].items() if name.endswith("test.jsonl")), ""),
        "prepared": _prepared(config, manifest.stages.get("prepare")),
        "adapter": _adapter(folder.adapter / "adapter_config.json"),
        "trained": _trained(folder, manifest.stages.get("train")),
        "prompt": _prompt(config),
        "run_id": manifest.run_id,
        "versions": ", ".join(f"{name} {version}" for name, version in report["versions"].items()),
    }


def _use(config: Config) -> dict[str, str]:
    name = config.ollama.name or config.run.name
    question = config.validation.questions[0] if config.validation.questions else FALLBACK_QUESTION
    in_shell = f'"{question}"' if not set(question) & set('"$`\\!\n') else shlex.quote(question)
    return {"model": name, "question": question, "command": f"ollama run {name} {in_shell}"}


def _prepared(config: Config, record: StageRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    figures, source = record.figures, record.inputs[0] if record.inputs else None
    return {
        "source": {"name": Path(source.path).name, "sha256": source.sha256} if source else None,
        "rows": _counted(figures, ("rows", "kept", "duplicates", "rejected", "truncated", "dropped_too_long")),
        "reasons": figures.get("reasons") or {},
        "split": record.settings.get("data.split", config.data.split),
        "seed": record.settings.get("data.seed", config.data.seed),
        "splits": _counted(figures, ("train", "val", "test")),
        "leaks": _counted(figures, ("questions", "leaked_questions", "near_duplicates")),
    }


def _adapter(path: Path) -> dict[str, Any]:
    values = read_json(path)
    targets = values.get("target_modules")
    return {
        "r": values.get("r"),
        "alpha": values.get("lora_alpha"),
        "scale": "alpha / sqrt(r)" if values.get("use_rslora") else "alpha / r",
        "targets": ", ".join(sorted(targets)) if isinstance(targets, list) else targets,
    }


def _trained(folder: RunFolder, record: StageRecord | None) -> dict[str, Any] | None:
    if record is None:
        return None
    figures = record.figures
    recipe = {key: record.settings[f"train.{key}"] for key in RECIPE if f"train.{key}" in record.settings}
    losses = (figures.get("held_out_loss_before"), figures.get("held_out_loss_after"))
    return {
        "recipe": ", ".join(f"{_label(key)} {value}" for key, value in recipe.items()),
        "where": ", ".join(str(figures[key]) for key in ("backend", "device", "precision") if figures.get(key)),
        "counts": _counted(figures, ("records", "tokens_seen", "trainable_parameters", "total_parameters")),
        "losses": losses if None not in losses else None,
        "plot": folder.loss_plot.name if folder.loss_plot.is_file() else "",
    }


def _prompt(config: Config) -> dict[str, str]:
    form = prompt_format(config.prompt)
    return {
        "text": prompt_text(form, "{question}", "{instruction}"),
        "instruction": form.instruction,
        "eos": form.eos,
        "function": python_function(form),
    }


def _counted(figures: dict[str, Any], keys: tuple[str, ...]) -> str:
    found = [(key, figures[key]) for key in keys if isinstance(figures.get(key), int)]
    return ", ".join(f"{_label(key)} {count:,}" for key, count in found)


def _label(key: str) -> str:
    return key.replace("_", " ")
