"""The model card's YAML front matter: what the Hugging Face hub reads of a model."""

from typing import TYPE_CHECKING

from toolkit.core.input_settings import MEDQUAD_SHA256
from toolkit.report.facts import Facts
from toolkit.report.report_file import Report

if TYPE_CHECKING:
    from huggingface_hub import EvalResult

TAGS = ["gguf", "llama-cpp", "lora", "ollama"]
# What the hub takes as `license`: it refuses a card with another. `other` and `unknown` are left out: they say nothing.
HUB_LICENSES = {
    "afl-3.0", "agpl-3.0", "apache-2.0", "apple-amlr", "apple-ascl", "artistic-2.0", "bigcode-openrail-m",
    "bigscience-bloom-rail-1.0", "bigscience-openrail-m", "bsd", "bsd-2-clause", "bsd-3-clause", "bsd-3-clause-clear",
    "bsl-1.0", "c-uda", "cc", "cc-by-2.0", "cc-by-2.5", "cc-by-3.0", "cc-by-4.0", "cc-by-nc-2.0", "cc-by-nc-3.0",
    "cc-by-nc-4.0", "cc-by-nc-nd-3.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-2.0", "cc-by-nc-sa-3.0", "cc-by-nc-sa-4.0",
    "cc-by-nd-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc0-1.0", "cdla-permissive-1.0", "cdla-permissive-2.0",
    "cdla-sharing-1.0", "creativeml-openrail-m", "deepfloyd-if-license", "ecl-2.0", "epl-1.0", "epl-2.0", "etalab-2.0",
    "eupl-1.1", "eupl-1.2", "fair-noncommercial-research-license", "gemma", "gfdl", "gpl", "gpl-2.0", "gpl-3.0",
    "grok2-community", "h-research", "intel-research", "isc", "lgpl", "lgpl-2.1", "lgpl-3.0", "lgpl-lr", "llama2",
    "llama3", "llama3.1", "llama3.2", "llama3.3", "llama4", "lppl-1.3c", "mit", "mpl-2.0", "ms-pl", "ncsa", "odbl",
    "odc-by", "ofl-1.1", "openrail", "openrail++", "osl-3.0", "pddl", "postgresql", "unlicense", "wtfpl", "zlib",
}  # fmt: skip


def front_matter(facts: Facts, report: Report) -> str:
    """Return the YAML between the card's two lines of dashes; what is not known is left out.

    The base is named if it has a commit: then its name is a hub's, not a path. The data are
    known if the run prepared MedQuAD and trained on it, the language if prepare was sure of it. Scores of the
    default file are the hub's `model-index`.
    """
    from huggingface_hub import ModelCardData

    base, medquad = report.base, _trained_on_medquad(facts)
    data = ModelCardData(
        model_name=facts.name,
        base_model=base.label if base.commit else None,
        license=_hub_license(base.licence),
        datasets=["medquad"] if medquad else None,
        language="en" if medquad else _language(facts),
        library_name="llama-cpp-python",
        tags=[*TAGS, "medical"] if medquad else TAGS,
        eval_results=_results(facts) or None,
    )
    return data.to_yaml()


def _results(facts: Facts) -> "list[EvalResult]":
    """Return what was measured of the default file, as the hub has it: task, data set, metric, value."""
    from huggingface_hub import EvalResult

    name = facts.config.export.default
    if facts.evaluation is None or not facts.fits:
        return []
    found = []
    held_out = facts.evaluation.held_out
    system = held_out.systems.get(name) if held_out else None
    for key, title in (("chrf", "chrF"), ("rouge_l", "ROUGE-L")):
        one = getattr(system, key) if system else None
        if one is not None and one.mean is not None:
            where = ("held-out", "test records of this run")
            found.append(EvalResult("question-answering", *where, key, one.mean, metric_name=title))
    for task in facts.evaluation.choice:
        score = task.systems.get(name)
        if score is not None and score.mean is not None:
            where = (task.task, task.title or task.task)
            found.append(EvalResult("multiple-choice", *where, task.metric or "acc", score.mean))
    return found


def _language(facts: Facts) -> str | None:
    """Return the ISO 639 code of the language that most prepared answers are in, None if that is not certain."""
    prepared = facts.record("prepare")
    return (prepared.figures.get("language") or None) if prepared and facts.record("train") else None


def _trained_on_medquad(facts: Facts) -> bool:
    """Say whether this run prepared MedQuAD and trained on it; the SHA-256 identifies the file."""
    prepared = facts.record("prepare")
    if prepared is None or facts.record("train") is None:
        return False
    return any(file.sha256 == MEDQUAD_SHA256 for file in prepared.inputs)


def _hub_license(found: str) -> str | None:
    """Return the hub's identifier of a licence, None if it has none."""
    plain = found.strip("\"'").lower()
    return plain if plain in HUB_LICENSES else None
