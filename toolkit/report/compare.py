"""Two runs side by side: the settings that differ, losses, files, scores and answers."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

from toolkit.core import console
from toolkit.report.answers import Beside, Told, marked, plain
from toolkit.report.charts import interval_chart
from toolkit.report.facts import Facts
from toolkit.report.page import Drawn, environment
from toolkit.report.sources import Measure
from toolkit.report.words import MEASURES, clipped, decimal, nats, percent, setting_text, shown

MOST_ANSWERS, MOST_CHARACTERS = 60, 2000
ABSENT = "-"


@dataclass(frozen=True)
class Row:
    """One line of a comparison: what it is, and both runs' values as they are written."""

    name: str
    one: str
    other: str


@dataclass(frozen=True)
class BothRuns:
    """Two runs: their names, the settings that differ, their losses, files and scores, and their answers.

    `alike` says what makes the figures of both comparable, or why they are not.
    """

    one: str
    other: str
    alike: list[str]
    settings: list[Row]
    losses: list[Row]
    files: list[Row]
    scores: list[Row]
    charts: list[Drawn]
    answers: list[Beside]

    @property
    def figures(self) -> dict[str, Any]:
        """The same for a script."""
        tables = {name: getattr(self, name) for name in ("settings", "losses", "files", "scores")}
        rows = {name: {row.name: [row.one, row.other] for row in found} for name, found in tables.items()}
        answers = [asdict(one) for one in self.answers]
        return {"runs": [self.one, self.other], "notes": self.alike, **rows, "answers": answers}

    def __str__(self) -> str:
        """Return the tables for the screen."""
        parts = [f"{self.one} and {self.other}", *self.alike]
        for title, rows in (
            ("settings that differ", self.settings),
            ("losses", self.losses),
            ("files", self.files),
            ("scores", self.scores),
        ):
            if rows:
                lines = [(row.name, clipped(row.one, 60), clipped(row.other, 60)) for row in rows]
                parts.append("\n" + console.table((title, self.one, self.other), lines))
            else:
                parts.append(f"\n{title}: none")
        return "\n".join(parts)


def compare_runs(one: Facts, other: Facts) -> BothRuns:
    """Compare two runs; a figure that one of them lacks is a dash."""
    names = (one.name, other.name) if one.name != other.name else (f"{one.name} (first)", f"{other.name} (second)")
    return BothRuns(
        *names,
        alike=_alike(one, other),
        settings=_settings(one, other),
        losses=_losses(one, other),
        files=_files(one, other),
        scores=_scores(one, other),
        charts=_charts(one, other, names),
        answers=_answers(one, other, names),
    )


def compare_page(found: BothRuns) -> str:
    """Write the comparison as a page."""
    return environment().get_template("compare.html").render(found=found)


def _alike(one: Facts, other: Facts) -> list[str]:
    said = []
    held_out = [_test_hash(facts) for facts in (one, other)]
    if None not in held_out:
        same = held_out[0] == held_out[1]
        said.append(
            "Both have the same held-out rows."
            if same
            else "Their held-out rows differ: losses, KL and scores of the two cannot be compared."
        )
    questions = [_questions(facts) for facts in (one, other)]
    if None not in questions and questions[0] != questions[1]:
        said.append(
            "Their evaluations asked different questions, or allowed answers of different length: "
            "their scores cannot be compared."
        )
    bases = [facts.report.base.label for facts in (one, other) if facts.report]
    if len(bases) == 2 and bases[0] != bases[1]:
        said.append(f"Their bases differ: {bases[0]} and {bases[1]}.")
    for facts in (one, other):
        stale = [stage.name for stage in facts.stages if stage.state == "stale"]
        said += [f"{facts.name} is out of date: {', '.join(stale)}."] * bool(stale)
        said += facts.problems
        if facts.evaluation is not None and not facts.fits:
            said.append(f"The evaluation of {facts.name} is of other files than those that are there now.")
    return said


def _test_hash(facts: Facts) -> str | None:
    if facts.report is None:
        return None
    return next((sha for name, sha in facts.report.sources.items() if name.endswith("test.jsonl")), None)


def _questions(facts: Facts) -> tuple[int | None, list[str]] | None:
    """Return the longest answer (tokens) and the questions of an evaluation; None where there is none."""
    held_out = facts.evaluation.held_out if facts.evaluation else None
    return (held_out.answer_tokens, [one.question for one in held_out.answers]) if held_out else None


def _settings(one: Facts, other: Facts) -> list[Row]:
    keys = sorted({*one.settings, *other.settings} - {"run.name"})
    missing = object()
    values = [(key, one.settings.get(key, missing), other.settings.get(key, missing)) for key in keys]
    return [
        Row(key, *(ABSENT if each is missing else shown(setting_text(each)) for each in (first, second)))
        for key, first, second in values
        if first != second
    ]


def _losses(one: Facts, other: Facts) -> list[Row]:
    both = (one, other)
    before = [facts.training.losses[0] if facts.training and facts.training.losses else None for facts in both]
    after = [facts.training.losses[1] if facts.training and facts.training.losses else None for facts in both]
    rows = [("held-out loss before training", before), ("held-out loss after training", after)]
    rows += [
        (f"perplexity of {who}", [getattr(facts.report.reference, key) if facts.report else None for facts in both])
        for who, key in (("the base", "base_perplexity"), ("the trained model", "perplexity"))
    ]
    return [Row(name, *(_number(value) for value in values)) for name, values in rows if values != [None, None]]


def _number(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.4f}"


def _files(one: Facts, other: Facts) -> list[Row]:
    there = [facts.report.quantizations if facts.report else {} for facts in (one, other)]
    names = dict.fromkeys([*there[0], *there[1]])

    def written(files: dict[str, Any], name: str) -> str:
        entry = files.get(name)
        if entry is None:
            return ABSENT
        said = f"{console.size(entry.bytes)}, mean KL {nats(entry.mean_kl)}, top-1 {percent(entry.top1)}, "
        return said + ("passed" if entry.passed else "FAILED")

    return [Row(name, written(there[0], name), written(there[1], name)) for name in names]


def _measures(facts: Facts) -> dict[tuple[str, str], Measure]:
    """Return each measure of an evaluation by its name and system."""
    found: dict[tuple[str, str], Measure | None] = {}
    if facts.evaluation is None:
        return {}
    held_out = facts.evaluation.held_out
    for name, system in (held_out.systems if held_out else {}).items():
        found |= {(MEASURES[key][0], name): getattr(system, key) for key in ("nll", "chrf", "rouge_l")}
    for task in facts.evaluation.choice:
        found |= {(task.title or task.task, name): one for name, one in task.systems.items()}
    return {key: one for key, one in found.items() if one is not None and one.mean is not None}


def _scores(one: Facts, other: Facts) -> list[Row]:
    first, second = _measures(one), _measures(other)
    keys = [*dict.fromkeys([*first, *second])]
    measures = [*dict.fromkeys(measure for measure, _ in keys)]
    return [
        Row(f"{key[0]}: {key[1]}", _interval(first.get(key)), _interval(second.get(key)))
        for key in sorted(keys, key=lambda key: measures.index(key[0]))
    ]


def _interval(found: Measure | None) -> str:
    if found is None or found.mean is None:
        return ABSENT
    if found.low is None or found.high is None:
        return decimal(found.mean)
    return f"{decimal(found.mean)} ({decimal(found.low)} to {decimal(found.high)})"


def _charts(one: Facts, other: Facts, names: tuple[str, str]) -> list[Drawn]:
    """Draw each measure of the trained model of both runs."""
    both, drawn = (_measures(one), _measures(other)), []
    for index, measure in enumerate(dict.fromkeys(key[0] for found in both for key in found)):
        rows = {
            name: found[(measure, "trained")]
            for name, found in zip(names, both, strict=True)
            if (measure, "trained") in found
        }
        if len(rows) == 2:
            text = interval_chart(f"score{index}", f"{measure}, trained models", rows, "")
            drawn.append(Drawn(f"{measure[:1].upper()}{measure[1:]}, trained models", text))
    return drawn


def _asked(facts: Facts) -> dict[str, str]:
    """Return the trained model's answers by question; where it was not evaluated, those of validation."""
    held_out = facts.evaluation.held_out if facts.evaluation else None
    found = {
        one.question: one.answers["trained"].text
        for one in (held_out.answers if held_out else [])
        if "trained" in one.answers
    }
    return found or {one.question: one.after for one in (facts.report.answers if facts.report else [])}


def _answers(one: Facts, other: Facts, names: Iterable[str]) -> list[Beside]:
    first, second = _asked(one), _asked(other)
    rows, (name, other_name) = [], names
    for question in [question for question in first if question in second][:MOST_ANSWERS]:
        texts = [clipped(shown(found[question].strip()), MOST_CHARACTERS) for found in (first, second)]
        pieces, note = marked(texts[1], texts[0])
        note = "word for word the same" if texts[0] == texts[1] else note
        told = [Told(name, plain(texts[0])), Told(other_name, pieces, note)]
        rows.append(Beside(None, clipped(question, MOST_CHARACTERS), "", told))
    return rows
