"""The model card: what the model is, how it was made, how close each file is to it, and what it is not for.

The text is in `toolkit/templates/model_card.md`; this module gathers its values.
"""

import shlex
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.of_chats import of_chats
from toolkit.core.trained_with import skipped_steps, trained_with
from toolkit.report import verdicts
from toolkit.report.facts import Data, Facts, Training
from toolkit.report.front_matter import front_matter
from toolkit.report.markdown import markdown_environment
from toolkit.report.report_file import Report
from toolkit.report.sources import Comparison, Evaluation
from toolkit.report.words import MEASURES, counted, decimal, merge_sentence, penalty_sentence, percent

MOST_SOURCES = 20  # that are listed; MedQuAD has thousands of documents
FALLBACK_QUESTION = "What are the symptoms of dehydration?"


def model_card(facts: Facts, report: Report) -> str:
    """Write the model card in Markdown, from the same facts as the page.

    Unknown values are left out, as with an adapter that was trained elsewhere.
    """
    return markdown_environment().get_template("model_card.md").render(_values(facts, report))


def _values(facts: Facts, report: Report) -> dict[str, Any]:
    """Gather the template's values by name."""
    config = facts.config
    return {
        "front_matter": front_matter(facts, report),
        "name": facts.name,
        "base": report.base,
        "passed": report.passed,
        "held_out": report.held_out,
        "reference": report.reference,
        "answers": report.answers,
        "warnings": report.warnings,
        "names_medquad": set(config.data.sources) <= {"medquad", "medquad-full"},
        "use": _use(config),
        "files": report.quantizations,
        "problems": [(name, text) for name, entry in report.quantizations.items() for text in entry.problems],
        "default": config.export.default,
        "merge": merge_sentence(report.merge) if report.merge else "",
        "penalty": penalty_sentence(report.penalty) if report.penalty else "",
        "held_out_sha256": next((sha for name, sha in report.sources.items() if name.endswith("test.jsonl")), ""),
        "prepared": _prepared(facts.data) if facts.data else None,
        "adapter": facts.adapter,
        "trained": _trained(facts.training) if facts.training else None,
        "evaluated": _evaluated(facts.evaluation) if facts.evaluation and facts.fits else None,
        "prompt": facts.prompt,
        "run_id": facts.manifest.run_id,
        "versions": ", ".join(f"{name} {version}" for name, version in report.versions.items()),
    }


def _use(config: Config) -> dict[str, str]:
    name = config.ollama.name or config.run.name
    question = config.validation.questions[0] if config.validation.questions else FALLBACK_QUESTION
    in_shell = f'"{question}"' if not set(question) & set('"$`\\!\n') else shlex.quote(question)
    return {"model": name, "question": question, "command": f"ollama run {name} {in_shell}"}


def _prepared(data: Data) -> dict[str, Any]:
    figures = dict(data.figures)
    return {
        "sources": [(Path(file.path).name, file.sha256) for file in data.sources[:MOST_SOURCES]],
        "more_sources": max(len(data.sources) - MOST_SOURCES, 0),
        "rows": _counted(figures, ("rows", "kept", "duplicates", "rejected", "truncated", "dropped_too_long")),
        "chats": of_chats(figures),
        "reasons": figures.get("reasons") or {},
        "split": data.split,
        "seed": data.seed,
        "splits": _counted(figures, ("train", "val", "test")),
        "leaks": _counted(figures, ("questions", "leaked_questions", "near_duplicates")),
    }


def _trained(training: Training) -> dict[str, Any]:
    figures = dict(training.figures)
    return {
        "recipe": ", ".join(f"{_label(key)} {value}" for key, value in training.recipe.items()),
        "where": trained_with(figures),
        "skipped": skipped_steps(figures),
        "counts": _counted(figures, ("records", "tokens_seen", "trainable_parameters", "total_parameters")),
        "losses": training.losses,
        "plot": training.plot,
    }


def _evaluated(evaluation: Evaluation) -> dict[str, Any]:
    """Gather the scores of each system by measure, and what can be said of their differences."""
    rows: list[tuple[str, dict[str, str]]] = []
    held_out = evaluation.held_out
    if held_out:
        for key in ("nll", "chrf", "rouge_l"):
            found = {name: getattr(one, key) for name, one in held_out.systems.items()}
            scores = {name: decimal(one.mean) for name, one in found.items() if one and one.mean is not None}
            rows.append((MEASURES[key][0], scores))
    for task in evaluation.choice:
        form = percent if task.is_share else decimal
        scores = {name: form(one.mean) for name, one in task.systems.items() if one.mean is not None}
        rows.append((task.title or task.task, scores))
    rows = [(name, scores) for name, scores in rows if scores]
    unsafe = verdicts.unsafe_answers(evaluation.votes) if evaluation.votes else 0
    systems = list(dict.fromkeys(name for _, scores in rows for name in scores))
    return {
        "questions": held_out.questions if held_out else None,
        "systems": systems,
        "rows": rows,
        "sentences": [
            f"{one.b} against {one.a}: {verdicts.comparison_sentence(one, evaluation)}"
            for one in evaluation.comparisons
            if one.verdict != verdicts.NO_DIFFERENCE
        ],
        "even": _even(evaluation.comparisons),
        "votes": evaluation.votes.pairs if evaluation.votes else [],
        "unsafe": counted(unsafe, "answer") if unsafe else "",
    }


def _even(found: list[Comparison]) -> str:
    """Name the pairs of systems between which nothing at all can be shown."""
    pairs = dict.fromkeys((one.a, one.b) for one in found)
    shown = {(one.a, one.b) for one in found if one.verdict != verdicts.NO_DIFFERENCE}
    return ", ".join(f"{a} and {b}" for a, b in pairs if (a, b) not in shown)


def _counted(figures: dict[str, Any], keys: tuple[str, ...]) -> str:
    found = [(key, figures[key]) for key in keys if isinstance(figures.get(key), int)]
    return ", ".join(f"{_label(key)} {count:,}" for key, count in found)


def _label(key: str) -> str:
    return key.replace("_", " ")
