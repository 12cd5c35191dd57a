"""The clinicians' votes in words and tables, for the screen."""

from typing import Any

from toolkit.core import console
from toolkit.evaluate.agreement import strength
from toolkit.evaluate.votes import VERDICTS


def votes_table(votes: dict[str, Any]) -> str:
    """Write the count for people: a table, the agreement in words, and every vote that both answers are unsafe."""
    rows = [
        (
            f"{pair['b']} against {pair['a']}",
            *(pair[verdict] for verdict in VERDICTS),
            preference(pair),
            in_words(pair),
        )
        for pair in votes["pairs"]
    ]
    raters = len(votes["files"])
    title = f"{sum(file['votes'] for file in votes['files'])} votes of {counted(raters, 'rater')}"
    columns = ("compared", "better", "worse", "same", "both unsafe", "preferred (95 % interval)", "in words")
    lines = [console.table(columns, rows, title=title)]
    if raters > 1:
        lines.append(
            "More votes for one answer than for the other decide a question; the columns before that count votes."
        )
    lines.append(agreement_sentence(votes["agreement"]))
    for pair in votes["pairs"]:
        if pair["identical"]:
            lines.append(
                f"{pair['a']} and {pair['b']} gave the same text to {counted(pair['identical'], 'question')}: "
                "not shown, not counted."
            )
    unsafe = votes["unsafe"][::2]  # one line for both answers
    if unsafe:
        lines.append("Both answers were called unsafe:")
    for one, other in zip(unsafe, votes["unsafe"][1::2], strict=True):
        comment = " ".join(one["comment"].split()) or "(no comment)"
        question = " ".join(one["question"].split())
        lines.append(
            f"- {one['system']} and {other['system']}, row {one['row']}: {question} ({one['rater']}: {comment})"
        )
    return "\n".join(lines)


def counted(number: int, noun: str) -> str:
    """Write a number with its noun, in the plural where it is not one."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def in_words(pair: dict[str, Any]) -> str:
    """Say whether the second system of a pair is better or worse, or that no difference can be shown."""
    return f"{pair['b']} is {pair['verdict']}" if pair["verdict"] in ("better", "worse") else str(pair["verdict"])


def preference(pair: dict[str, Any]) -> str:
    """Say how often the second system of a pair is preferred, with the interval and what that is a share of."""
    if pair["win_rate"] is None:
        return "no question is decided"
    decided = pair["questions_better"] + pair["questions_worse"]
    low, high, rate = (round(100 * pair[name]) for name in ("low", "high", "win_rate"))
    return f"{rate} % of {decided} decided ({low} to {high} %)"


def agreement_sentence(agreement: dict[str, Any]) -> str:
    """Say in words how far the raters agree."""
    raters, items = agreement["raters"], agreement["items"]
    if raters < 2:
        return "One rater: nothing is known about agreement."
    if not items:
        return f"The {raters} raters share no question: nothing is known about agreement."
    share = f"The {raters} raters agree in {round(100 * agreement['observed'])} % on {counted(items, 'question')}"
    if agreement["kappa"] is None:
        return f"{share}; all said the same, so there is no kappa."
    kappa = agreement["kappa"]
    return f"{share}; {agreement['method']}'s kappa {kappa:.2f}, {strength(kappa)}."
