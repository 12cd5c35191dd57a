"""The page's sentences about a run: what it is, its data, its training, its files."""

from collections.abc import Mapping
from typing import Any

from toolkit.core import console
from toolkit.core.of_chats import of_chats
from toolkit.core.trained_with import skipped_steps, trained_with
from toolkit.prompt.languages import language_name
from toolkit.report.facts import Facts
from toolkit.report.words import and_list, counted, merge_sentence, penalty_sentence

LIBRARIES = ("toolkit", "python", "torch", "transformers", "peft", "trl", "unsloth", "llama-cpp-python")


def what_it_is(facts: Facts) -> str:
    """Say what the model is, in two sentences."""
    base = facts.report.base.label if facts.report else ""
    licence = facts.report.base.licence if facts.report else ""
    served = facts.config.ollama.name or facts.name
    first = "A language model that answers questions in writing"
    first += f", made from {base} by further training." if base else ", made from another one by further training."
    terms = f" The base's licence is {licence}." if licence else " Its base's licence is not in its files: look it up."
    called = "is called" if facts.record("register") else "would be called"
    return f"{first} In Ollama it {called} {served}.{terms}"


def trained_on(facts: Facts) -> str:
    """Say on what the model was trained, as far as this run knows it."""
    if facts.data is None:
        return "Not known: the data were not prepared in this run."
    figures = facts.data.figures
    rows = figures.get("train")
    what = (
        counted(rows, "question with its answer", "questions with their answers") if isinstance(rows, int) else "Rows"
    )
    source = f" from {facts.data.name}" if facts.data.name else ""
    if facts.training is None:
        return f"The adapter was not trained in this run. Its data folder holds {what}{source}."
    spoken = f", in {language_name(figures['language'])}" if figures.get("language") else ""
    kept = [count for name in ("val", "test") if isinstance(count := figures.get(name), int)]
    apart = f" {counted(sum(kept), 'row was', 'rows were')} kept apart to measure it." if kept else ""
    return f"{what}{source}{spoken}.{apart}"


def stale(facts: Facts) -> str:
    """Name the stages whose results are not of the present settings and files; empty where all are."""
    found = [f"{one.name} ({one.why})" for one in facts.stages if one.state == "stale"]
    return and_list(found)


def versions(facts: Facts) -> str:
    """List the versions of the libraries that made the results."""
    found: dict[str, str] = {}
    for one in facts.stages:
        found.update(one.versions)
    found.update(facts.report.versions if facts.report else {})
    return ", ".join(f"{name} {found[name]}" for name in LIBRARIES if name in found)


def data(facts: Facts) -> str:
    """Say how many rows there were, and what became of them."""
    if facts.data is None:
        return ""
    figures = facts.data.figures
    said = f"{facts.data.name or 'The data'}"
    if isinstance(figures.get("rows"), int):
        said += f" holds {counted(figures['rows'], 'row')}"
        parts = [
            f"{figures[key]:,} {word}"
            for key, word in (
                ("kept", "kept"),
                ("duplicates", "dropped as exact duplicates"),
                ("rejected", "rejected"),
                ("dropped_too_long", "dropped as too long"),
                ("truncated", "cut"),
            )
            if isinstance(figures.get(key), int) and (figures[key] or key in ("kept", "duplicates", "rejected"))
        ]
        said += f": {and_list(parts)}" if parts else ""
    return f"{said}. The split is {facts.data.split}, with seed {facts.data.seed}."


def data_remarks(facts: Facts) -> list[str]:
    """List what else is known of the data."""
    if facts.data is None:
        return []
    figures = facts.data.figures
    said = []
    code = figures.get("language")
    said.append(f"Language of the answers: {language_name(code) if code else 'not certain'}.")
    for key, text in (
        ("questions", "Different questions"),
        ("leaked_questions", "Questions in more than one split"),
        ("near_duplicates", "Held-out questions with a near-duplicate in another split"),
        ("reworded_questions", "Held-out questions that ask what a training question asks in other words"),
        ("control_like", "Rows with text that looks like a part of the prompt"),
    ):
        if isinstance(figures.get(key), int):
            said.append(f"{text}: {figures[key]:,}.")
    said += [f"{text}." for text in of_chats(figures)]
    columns = figures.get("columns")
    if isinstance(columns, Mapping) and columns:
        said.append("Columns: " + ", ".join(f"{key} from {value}" for key, value in columns.items() if value) + ".")
    for name, one in (figures.get("files") or {}).items():
        said.append(f"{name}: {counted(one.get('rows', 0), 'row')}, {one.get('rejected', 0):,} rejected.")
    said += _personal(figures.get("personal"))
    for kind, count in (figures.get("damaged") or {}).items():
        said.append(f"Rows with {DAMAGE.get(kind, kind)}: {count:,}.")
    lengths = sorted(each for one in facts.data.lengths.values() for each in one)
    if lengths:
        said.append(
            f"Half of the answers have {lengths[len(lengths) // 2]:,} words or fewer; the longest {lengths[-1]:,}."
        )
    return said


def _personal(found: Mapping[str, Any] | None) -> list[str]:
    """Say what prepare found of personal data, and where it did not look."""
    if found is None:
        return ["Personal data: the rows were not searched for it."]
    if not found.get("looked"):
        return ["Personal data: the rows were not searched for it (data.personal)."]
    names = "" if found.get("names") else " Names of persons were not searched for."
    if not found.get("rows"):
        return [f"Personal data: none was found.{names}"]
    done = "masked" if found.get("mode") == "mask" else "left in the rows"
    kinds = ", ".join(f"{kind} {count:,}" for kind, count in (found.get("kinds") or {}).items())
    return [f"Personal data in {counted(found['rows'], 'row')}: {kinds}; {done}.{names}"]


DAMAGE = {
    "html": "HTML tags or entities",
    "mojibake": "wrongly read UTF-8",
    "lost": "characters that were lost",
}


def training(facts: Facts) -> str:
    """Say how long training took, on what, and how much it saw."""
    if facts.training is None:
        return ""
    figures: Mapping[str, Any] = facts.training.figures
    record = facts.record("train")
    said = []
    if isinstance(figures.get("steps"), int):
        said.append(counted(figures["steps"], "step"))
    if isinstance(figures.get("tokens_seen"), int):
        said.append(counted(figures["tokens_seen"], "token"))
    if record:
        said.append(console.duration(record.seconds))
    where = trained_with(figures)
    text = f"{', '.join(said)}" + (f" ({where})" if where else "") + "."
    if isinstance(figures.get("trainable_parameters"), int) and isinstance(figures.get("total_parameters"), int):
        text += f" {figures['trainable_parameters']:,} of {figures['total_parameters']:,} parameters were trained."
    if skipped := skipped_steps(figures):
        text += f" {skipped}."
    adapter = facts.adapter
    if adapter.get("r"):
        text += f" LoRA, r {adapter['r']}, alpha {adapter['alpha']} (scale {adapter['scale']})"
        text += f", on {adapter['targets']}." if adapter.get("targets") else "."
    return text


def files(facts: Facts) -> list[str]:
    """Say what else validation found: the cost of the merge, the effect of a repeat penalty."""
    if facts.report is None:
        return []
    said = []
    if facts.report.merge:
        said.append(f"The adapter was {merge_sentence(facts.report.merge)}")
    if facts.report.penalty:
        said.append(penalty_sentence(facts.report.penalty))
    return said
