"""The judge's results, in words for a doctor."""

from typing import Any

from toolkit.core import console
from toolkit.evaluate.agreement import strength
from toolkit.evaluate.votes_words import counted, in_words, preference


def judge_table(judge: dict[str, Any]) -> str:
    """Write what the judge said for people: a table, and how far it agrees with the raters."""
    rows = [
        (
            f"{pair['b']} against {pair['a']}",
            *(pair[name] for name in ("better", "worse", "same", "disagreed")),
            preference(pair),
            in_words(pair),
        )
        for pair in judge["pairs"]
    ]
    columns = (
        "compared",
        "better",
        "worse",
        "same",
        "of these: orders disagree",
        "preferred (95 % interval)",
        "in words",
    )
    table = console.table(columns, rows, title=f"judged by the model {judge['model']}, which decides nothing")
    return f"{table}\n{judge_sentence(judge)}"


def judge_sentence(judge: dict[str, Any]) -> str:
    """Say how many pairs the judge left without an answer, and how far it agrees with the raters."""
    unusable = f"{counted(judge['unusable'], 'pair')} had no usable answer. " if judge["unusable"] else ""
    turned, asked = (sum(pair[name] for pair in judge["pairs"]) for name in ("disagreed", "questions"))
    if 2 * turned > asked:
        unusable += f"In {turned} of {counted(asked, 'pair')} its choice depends on the order of the answers. "
    found = judge["agreement_with_votes"]
    if found is None:
        return f"{unusable}No pair was also decided by clinicians, so nobody knows how good this judge is."
    share = f"{unusable}With the clinicians it shares {counted(found['n'], 'pair')}"
    if found["kappa"] is None:
        return f"{share}; all said the same, so there is no kappa."
    return f"{share}; Cohen's kappa {found['kappa']:.2f}, {strength(found['kappa'])}."
