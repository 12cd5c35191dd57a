"""What an evaluation found, in a table and in words, for the screen."""

from typing import Any

from toolkit.core import console
from toolkit.core.evaluate_settings import BASE, TRAINED
from toolkit.evaluate.copied import LEARNED
from toolkit.evaluate.judge_words import judge_table
from toolkit.evaluate.statistics import NONE
from toolkit.report.words import MEASURES, counted

UNITS = {"nll": " nats per token", "chrf": " points"}


def evaluation_text(figures: dict[str, Any]) -> str:
    """Write the table of systems, and below it what differs, what was learned by heart, and what was not asked."""
    lines = [_table(figures)]
    lines += [_task(task) for task in figures["choice"]]
    lines += [sentence(*pair, found) for pair, found in _by_pair(figures).items()]
    lines.append(
        "95 % intervals (of shares: Wilson's) and p-values by bootstrap over questions; p corrected for "
        f"{figures['comparisons_made']} comparisons (Holm)"
    )
    lines += _copied(figures["held_out"]["systems"])
    lines += _memorised(figures.get("memorised"))
    lines += [f"{one['name']} was not asked: {one['skipped']}" for one in figures["systems"] if one["skipped"]]
    if figures.get("judge"):
        lines.append(judge_table(figures["judge"]))
    return "\n".join(lines)


def sentence(a: str, b: str, found: list[dict[str, Any]]) -> str:
    """Say in words how b compares with a: each difference with its interval, and where none can be shown."""
    shown = [one for one in found if one["verdict"] != NONE]
    rest = [_name(one["measure"]) for one in found if one["verdict"] == NONE]
    parts = [f"{one['verdict']} in {_name(one['measure'])} ({_difference(one)})" for one in shown]
    if rest:
        parts.append(f"{NONE} in {_listed(rest)}")
    return f"{b} against {a}: {'; '.join(parts)}"


def _difference(one: dict[str, Any]) -> str:
    unit = UNITS.get(one["measure"], "")
    return (
        f"difference {one['difference']:+.3g}{unit}, 95 % {one['low']:+.3g} to {one['high']:+.3g}, "
        f"p {_p(one['p_corrected'])}"
    )


def _p(value: float) -> str:
    return f"= {value:.2g}" if value >= 0.001 else "< 0.001"


def _name(measure: str) -> str:
    return MEASURES.get(measure, (measure, ""))[0]


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _by_pair(figures: dict[str, Any]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    every = [*figures["held_out"]["comparisons"], *(one for task in figures["choice"] for one in task["comparisons"])]
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for one in every:
        found.setdefault((one["a"], one["b"]), []).append(one)
    return found


def _table(figures: dict[str, Any]) -> str:
    held = figures["held_out"]
    rows = []
    for name, one in held["systems"].items():
        rows.append(
            (
                name,
                _mean(one["nll"], 3),
                _mean(one["chrf"], 1),
                _mean(one["rouge_l"], 3),
                f"{one['tokens']['mean']:.0f}",
                _percent(one["ended"]),
                _percent(one["language"]),
                f"{one['copied']['longest']} (median {one['copied']['median']:g})",
            )
        )
    columns = ("system", "loss (nats per token)", "chrF", "ROUGE-L", "tokens", "ended", "language", "words copied")
    title = f"{held['questions']} of {held['rows']} held-out questions, at most {held['answer_tokens']} tokens each"
    return console.table(columns, rows, title=title)


def _mean(one: dict[str, Any], digits: int) -> str:
    if one["mean"] is None:
        return "not measured"
    if one["low"] is None:
        return f"{one['mean']:.{digits}f}"
    return f"{one['mean']:.{digits}f} ({one['low']:.{digits}f} to {one['high']:.{digits}f})"


def _percent(one: dict[str, Any] | None) -> str:
    return "not measured" if one is None or one["mean"] is None else f"{100 * one['mean']:.0f} %"


def _task(task: dict[str, Any]) -> str:
    values = ", ".join(f"{name} {_mean(one, 3)}" for name, one in task["systems"].items())
    return f"{task['title']} ({task['items']:,} items, {task['metric']}): {values}"


def _copied(systems: dict[str, Any]) -> list[str]:
    """Say which answer was learned by heart, if one was; what the base shares with the data it has not seen there."""
    trained = systems.get(TRAINED)
    if trained is None:
        return []
    longest, base = trained["copied"]["longest"], systems.get(BASE, {}).get("copied", {}).get("longest")
    beside = "" if base is None else f"; of {BASE} the longest is {base}"
    if longest < LEARNED:
        return [
            f"no answer of {TRAINED} has more than {counted(longest, 'word')} in a row from a training answer{beside}"
        ]
    row = trained["copied"]["row"]
    return [f"an answer of {TRAINED} has {longest} words in a row from the training answer of row {row}{beside}"]


def _memorised(found: dict[str, Any] | None) -> list[str]:
    """Say how many training answers come back from their first words, and of which row the longest run is."""
    if found is None:
        return []
    parts = []
    for name, one in found["systems"].items():
        longest = f", the longest run {counted(one['longest'], 'word')} (row {one['row']})" if one["longest"] else ""
        personal = f", {one['personal']} of them in rows with personal data" if one["personal"] else ""
        parts.append(f"{name} {len(one['learned'])} of {one['rows']}{personal}{longest}")
    return [
        f"training answers of which {found['words']} words or more come back after their first "
        f"{found['first_words']} words: {'; '.join(parts)}"
    ]
