"""The page of one run: one HTML file without scripts that is read from the run's own files."""

import functools
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from toolkit import __version__
from toolkit.core import console
from toolkit.report import answers, charts, provenance, sentences, verdicts, words
from toolkit.report.facts import Facts
from toolkit.report.sources import HeldOut

MOST_BYTES = 1_900_000
MOST_CHARACTERS = 6000  # of any text; most have a smaller limit of their own
# How many questions with answers, and how many characters of each answer: the first pair that gives a small page.
ROOM = ((400, 4000), (100, 2500), (50, 1500), (20, 1000), (5, 600), (0, 0))
FORMS: dict[str, Callable[[Any], str]] = {
    "count": "{:,.0f}".format,
    "decimal": words.decimal,
    "nats": words.nats,
    "p": words.p_value,
    "percent": words.percent,
    "plain": "{:g}".format,
    "size": console.size,
    "three": "{:.3f}".format,
    "two": "{:.2f}".format,
}
# Measures of held-out answers, with the form of their figures and a short name for the table's head.
MEASURES = {"nll": "three", "chrf": "decimal", "rouge_l": "decimal", "tokens": "decimal", "ended": "percent"}
MEASURES |= {"language": "percent"}
SHORT = {
    "nll": "loss",
    "chrf": "chrF",
    "rouge_l": "ROUGE-L",
    "tokens": "tokens",
    "ended": "ends",
    "language": "language",
}


@dataclass(frozen=True)
class Drawn:
    """A chart with its title."""

    title: str
    svg: str


@functools.cache
def environment() -> Environment:
    """Return the environment of the pages: everything is escaped, and what cannot be seen is replaced."""
    made = Environment(
        loader=PackageLoader("toolkit"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
        finalize=lambda value: words.shown(words.clipped(value, MOST_CHARACTERS)) if type(value) is str else value,
    )
    made.filters |= {"clip": lambda text, most: words.clipped(str(text), most), "setting": words.setting_text}
    made.filters |= {"took": words.duration_or_nothing, "moment": lambda text: text[:16].replace("T", " ") or "-"}
    made.globals |= {
        "version": __version__,
        "lookup": lookup,
        "pointer": pointer,
        "exact": json.dumps,
        "written": lambda value, form: FORMS[form](value),
        "measure_name": verdicts.measure_name,
    }
    return made


def lookup(values: Any, path: Sequence[str | int]) -> int | float | None:
    """Return the number at a path of keys and indices in a file's content, None where there is none."""
    for key in path:
        if isinstance(values, Mapping) and isinstance(key, str):
            values = values.get(key)
        elif isinstance(values, list) and isinstance(key, int) and key < len(values):
            values = values[key]
        else:
            return None
    return values if isinstance(values, int | float) and not isinstance(values, bool) else None


def pointer(source: str, path: Sequence[str | int]) -> str:
    """Name a figure's place: the file, and in it a JSON pointer (RFC 6901)."""
    parts = (str(key).replace("~", "~0").replace("/", "~1") for key in path)
    return f"{source}.json#/{'/'.join(parts)}"


def report_page(facts: Facts) -> str:
    """Write the page; where it would be too large, with fewer and shorter answers."""
    template, values = environment().get_template("report.html"), _values(facts)
    text = ""
    for questions, most in ROOM:
        text = template.render(**values, **_answers(facts, questions, most))
        if len(text.encode("utf-8", "replace")) <= MOST_BYTES:
            break
    return text


def _answers(facts: Facts, questions: int, most: int) -> dict[str, Any]:
    """Choose the answers that are shown: those of the evaluation, else those that validation asked for."""
    held_out = facts.evaluation.held_out if facts.evaluation else None
    if held_out and held_out.answers:
        shown = held_out.answers[:questions]
        left = len(held_out.answers) - len(shown)
        return {"answers": answers.side_by_side(shown, most), "left_out": left, "marks": True}
    asked = facts.report.answers if facts.report else []
    return {
        "answers": answers.before_and_after(asked[:questions], most),
        "left_out": 0,
        "marks": False,
    }


def _values(facts: Facts) -> dict[str, Any]:
    report, evaluation = facts.report, facts.evaluation
    training = facts.record("train")
    said = [*(report.warnings if report else []), *([training.warning] if training and training.warning else [])]
    return {
        "facts": facts,
        "default": facts.config.export.default,
        "warnings": [words.clipped(text, 1000) for text in dict.fromkeys(said)],
        "stale": sentences.stale(facts),
        "what_it_is": sentences.what_it_is(facts),
        "trained_on": sentences.trained_on(facts),
        "limits": verdicts.limits(facts),
        "verdicts": verdicts.verdicts(facts),
        "versions": sentences.versions(facts),
        "data_sentence": sentences.data(facts),
        "data_remarks": sentences.data_remarks(facts),
        "training_sentence": sentences.training(facts),
        "problems": [(name, text) for name, one in _files(facts).items() for text in one.problems],
        "sentences": sentences.files(facts),
        "measures": MEASURES,
        "short": SHORT,
        "chain": provenance.chain(facts),
        "charts": {
            **_data_charts(facts),
            "loss": charts.loss_chart(facts.training.log) if facts.training else "",
            "sizes": charts.size_chart(_files(facts)),
            "spread": charts.kl_chart(report.kl_edges if report else [], _files(facts)),
            "measures": _measure_charts(evaluation.held_out if evaluation else None),
            "choice": [
                Drawn(
                    one.title or one.task,
                    charts.interval_chart(
                        f"task{index}", one.title or one.task, one.systems, charts.SHARE if one.is_share else one.metric
                    ),
                )
                for index, one in enumerate(evaluation.choice if evaluation else [])
            ],
        },
    }


def _files(facts: Facts) -> Mapping[str, Any]:
    return facts.report.quantizations if facts.report else {}


def _data_charts(facts: Facts) -> dict[str, str]:
    if facts.data is None:
        return {}
    figures = facts.data.figures
    rows = {"kept": "kept", "duplicates": "duplicates", "rejected": "rejected", "too long": "dropped_too_long"}
    splits = ("train", "val", "test")
    return {
        "rows": charts.parts_chart("rows", "What became of the rows", _counts(figures, rows)),
        "splits": charts.parts_chart("split", "The split", _counts(figures, dict(zip(splits, splits, strict=True)))),
        "lengths": charts.length_chart([each for one in facts.data.lengths.values() for each in one]),
    }


def _counts(figures: Mapping[str, Any], keys: Mapping[str, str]) -> list[tuple[str, int]]:
    return [(name, figures[key]) for name, key in keys.items() if isinstance(figures.get(key), int)]


def _measure_charts(held_out: HeldOut | None) -> list[Drawn]:
    drawn = []
    for key in MEASURES if held_out else ():
        name, unit = words.MEASURES[key]
        rows = {system: getattr(one, key) for system, one in (held_out.systems if held_out else {}).items()}
        there = {system: one for system, one in rows.items() if one is not None}
        text = charts.interval_chart(f"measure-{key}", name, there, unit)
        drawn += [Drawn(name[:1].upper() + name[1:], text)] * bool(text)
    return drawn
