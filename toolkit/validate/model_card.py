"""The model card: what the model is, how it was made, how close each file is to it, and what it is not for."""

import json
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.manifest import Manifest, StageRecord
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text, python_function
from toolkit.validate.report import merge_sentence, nats, percent

FALLBACK_QUESTION = "What are the symptoms of dehydration?"


def model_card(report: dict[str, Any], config: Config, folder: RunFolder, manifest: Manifest) -> str:
    """Write the model card in Markdown from a report and what the manifest holds of earlier stages.

    What is not known, as with an adapter trained elsewhere, is left out.
    """
    sections = [
        _introduction(report, config, folder),
        _limits(config),
        _use(config),
        _files(report, config),
        _answers(report),
        _data(report, config, manifest.stages.get("prepare")),
        _training(report, folder, manifest.stages.get("train")),
        _prompt(config),
        _versions(report, manifest),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def _introduction(report: dict[str, Any], config: Config, folder: RunFolder) -> str:
    base = report["base"]
    named = f"`{base['label']}`" + (f" at commit `{base['commit']}`" if base["commit"] else "")
    licence = f"Its licence: {base['licence']}." if base["licence"] else "Its licence is not in its files: look it up."
    verdict = (
        "Every file below passed its comparison with the trained model."
        if report["passed"]
        else "**Not every file below passed its comparison with the trained model: do not use one marked FAILED.**"
    )
    return (
        f"# {folder.name}\n\nA language model that answers questions, fine-tuned with LoRA from {named} and written as "
        f"GGUF files for llama.cpp and Ollama. {licence} The terms of the base hold for this model too.\n\n{verdict}"
    )


def _limits(config: Config) -> str:
    points = [
        "It is not a medical device and gives no medical advice. It must not decide on diagnosis, treatment or dose.",
        "It can be wrong and sound sure. A qualified clinician must check every answer before it is used for a person.",
        "The figures below say how close the files are to the trained model. They do not say that its answers are "
        "true: no fact was checked.",
        "It knows what its base and its records say, as old as they are, and in their language.",
        "The licence of the records, and whether they may be used so, is for you to check"
        + (" (MedQuAD's judged answers: CC BY 4.0)." if config.data.source == "medquad" else ".")
        + " A model may repeat what it was trained on: no patient's data belong in it.",
    ]
    return "## Limits\n\n" + "\n".join(f"- {point}" for point in points)


def _use(config: Config) -> str:
    name = config.ollama.name or config.run.name
    question = config.validation.questions[0] if config.validation.questions else FALLBACK_QUESTION
    quoted = f'"{question}"' if not set(question) & set('"$`\\!\n') else shlex.quote(question)
    script = (
        "import ollama\n\n"
        "reply = ollama.chat(\n"
        f"    model={json.dumps(name)},\n"
        f'    messages=[{{"role": "user", "content": {json.dumps(question, ensure_ascii=False)}}}],\n'
        ")\n"
        'print(reply["message"]["content"])'
    )
    return (
        "## Use\n\nOnce `toolkit register` has put it into Ollama:\n\n"
        f"{_fenced(f'ollama run {name} {quoted}', 'sh')}\n\n"
        f"or from Python, with `pip install ollama`:\n\n{_fenced(script, 'python')}"
    )


def _files(report: dict[str, Any], config: Config) -> str:
    held_out, reference = report["held_out"], report["reference"]
    rows = []
    for name, entry in report["quantizations"].items():
        rows.append(
            (
                f"{name} (default)" if name == config.export.default else name,
                f"`{entry['file']}`",
                console.size(entry["bytes"]),
                f"{entry['bits_per_weight']:.2f}",
                nats(entry["mean_kl"]),
                nats(entry["kl_99"]),
                percent(entry["top1"]),
                _three(entry["perplexity"]),
                f"{entry['bound']:g}",
                "passed" if entry["passed"] else "FAILED",
            )
        )
    columns = ("", "file", "size", "bits/weight", "mean KL", "99 % KL", "top-1", "perplexity", "bound", "verdict")
    hashes = [(name, f"`{entry['sha256']}`") for name, entry in report["quantizations"].items()]
    problems = [
        f"- {name}: {problem}" for name, entry in report["quantizations"].items() for problem in entry["problems"]
    ]
    return "\n\n".join(
        part
        for part in (
            "## Files",
            f"Each file was run in llama.cpp over {held_out['rows_scored']:,} held-out records "
            f"({held_out['tokens_scored']:,} answer tokens) and compared with base and adapter in transformers "
            f"({reference['dtype']}); the token ids of all {held_out['rows']:,} held-out prompts were compared as "
            "well. KL is the divergence from the trained model in nats a token, `top-1` how often the likeliest token "
            "is the same, `bound` the highest mean KL allowed.",
            _table(columns, rows),
            "\n".join(problems),
            f"Perplexity of the held-out answers: {_three(reference['base_perplexity'])} for the base, "
            f"{_three(reference['perplexity'])} for the trained model.",
            _merge(report.get("merge")),
            _table(("", "SHA-256"), hashes),
        )
        if part
    )


def _merge(entry: dict[str, Any] | None) -> str:
    if entry is None:
        return ""
    text = merge_sentence(entry)
    return _escaped(f"The adapter was {text}.")


def _answers(report: dict[str, Any]) -> str:
    if not report["answers"]:
        return ""
    parts = ["## Answers before and after training", "Greedy, cut at a fixed length; not chosen, not checked."]
    for answer in report["answers"]:
        parts.append(f"**{_escaped(answer['question'])}** (instruction: {_escaped(answer['instruction'])})")
        parts.append(f"Before:\n\n{_fenced(answer['before'].strip() or '(nothing)', 'text')}")
        parts.append(f"After:\n\n{_fenced(answer['after'].strip() or '(nothing)', 'text')}")
    return "\n\n".join(parts)


def _data(report: dict[str, Any], config: Config, record: StageRecord | None) -> str:
    if record is None:
        digest = next((value for name, value in report["sources"].items() if name.endswith("test.jsonl")), "")
        return f"## Data\n\nHeld out: {report['held_out']['rows']:,} records (SHA-256 `{digest}`)."
    figures, settings = record.figures, record.settings
    lines = []
    if record.inputs:
        source = record.inputs[0]
        lines.append(f"Source: `{Path(source.path).name}`, SHA-256 `{source.sha256}`")
    counts = ("rows", "kept", "duplicates", "rejected", "truncated", "dropped_too_long")
    lines.append(_counted(figures, counts))
    for reason, count in (figures.get("reasons") or {}).items():
        lines.append(f"Rejected for {reason}: {count:,}")
    split = settings.get("data.split", config.data.split)
    seed = settings.get("data.seed", config.data.seed)
    sides = _counted(figures, ("train", "val", "test"))
    lines.append(f"Split ({split}, seed {seed}): {sides}" if sides else f"Split: {split}, seed {seed}")
    lines.append(_counted(figures, ("questions", "leaked_questions", "near_duplicates")))
    return "## Data\n\n" + "\n".join(f"- {line}" for line in lines if line)


def _training(report: dict[str, Any], folder: RunFolder, record: StageRecord | None) -> str:
    lines = [_adapter(folder.adapter / "adapter_config.json")]
    if record is None:
        lines.append("Trained outside this run: its recipe is not known here")
    else:
        recipe = {
            key.removeprefix("train."): value for key, value in record.settings.items() if key.startswith("train.")
        }
        shown = ("max_steps", "num_train_epochs", "batch_size", "gradient_accumulation_steps", "learning_rate")
        rest = (
            "warmup_steps",
            "lr_scheduler_type",
            "weight_decay",
            "lora_dropout",
            "max_length",
            "completion_only_loss",
            "seed",
        )
        lines.append(", ".join(f"{_label(key)} {recipe[key]}" for key in (*shown, *rest) if key in recipe))
        figures = record.figures
        where = [str(figures[key]) for key in ("backend", "device", "precision") if figures.get(key)]
        lines.append(f"Trained with {', '.join(where)}" if where else "")
        lines.append(_counted(figures, ("records", "tokens_seen", "trainable_parameters", "total_parameters")))
        before, after = figures.get("held_out_loss_before"), figures.get("held_out_loss_after")
        if before is not None and after is not None:
            lines.append(f"Held-out loss: {before:.4f} before, {after:.4f} after (nats a token)")
        if folder.loss_plot.is_file():
            lines.append(f"[Loss curve]({folder.loss_plot.name})")
    return "## Training\n\n" + "\n".join(f"- {line}" for line in lines if line)


def _adapter(path: Path) -> str:
    values = json.loads(path.read_text(encoding="utf-8"))
    targets = values.get("target_modules")
    named = ", ".join(sorted(targets)) if isinstance(targets, list) else targets
    scale = "alpha / sqrt(r)" if values.get("use_rslora") else "alpha / r"
    where = f", on {named}" if named else ""
    return f"LoRA, r {values.get('r')}, alpha {values.get('lora_alpha')} (scale {scale}){where}"


def _prompt(config: Config) -> str:
    form = prompt_format(config.prompt)
    shown = prompt_text(form, "{question}", "{instruction}")
    default = f"Where no instruction is given it is: {_escaped(form.instruction)}\n\n" if form.instruction else ""
    eos = f"`{form.eos}`" if form.eos else "EOS"
    return (
        "## Prompt\n\nThe system message fills `{instruction}`, the user's message `{question}`; the answer starts "
        f"right behind it and ends with {eos}.\n\n{_fenced(shown, 'text')}\n\n{default}"
        f"For scripts that send the text themselves (`raw` in Ollama):\n\n{_fenced(python_function(form), 'python')}"
    )


def _versions(report: dict[str, Any], manifest: Manifest) -> str:
    listed = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    rest = "Every figure, the hashes of all inputs among them, is in `report.json`."
    return f"## Versions\n\nRun `{manifest.run_id}`: {listed}\n\n{rest}"


def _counted(figures: dict[str, Any], keys: tuple[str, ...]) -> str:
    found = [(key, figures[key]) for key in keys if isinstance(figures.get(key), int)]
    return ", ".join(f"{_label(key)} {count:,}" for key, count in found)


def _label(key: str) -> str:
    return key.replace("_", " ")


def _three(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [columns, tuple("---" for _ in columns), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _fenced(text: str, language: str) -> str:
    """Fence text as code; the fence is longer than any run of backticks in it, and control characters are shown."""
    text = re.sub(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", "\N{REPLACEMENT CHARACTER}", text)
    longest = max((len(run) for run in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}{language}\n{text}\n{fence}"


def _escaped(text: str) -> str:
    """Write text so that Markdown shows it as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", " ".join(text.split()))
