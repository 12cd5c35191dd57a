"""How close an answer is to the reference: chrF and ROUGE-L."""

import functools
from collections.abc import Sequence
from typing import Any

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.evaluate.copied import words_of

PARTS = ("rouge_score", "sacrebleu")


def check_installed(parts: Sequence[str] = PARTS) -> None:
    """Raise ToolkitError (exit 3) if a library of the extra is missing."""
    from toolkit.core.hardware import installed

    missing = [name for name in parts if not installed(name)]
    if missing:
        raise ToolkitError(
            f"`toolkit evaluate` needs {', '.join(missing)}",
            hint="pip install 'medassist-toolkit[evaluate]', or `pip install -e '.[evaluate]'` in a checkout",
            exit_code=MISSING,
        )


class _Words:
    """The words that ROUGE-L compares, also of texts that are not English (rouge-score's own are ASCII only)."""

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text."""
        return words_of(text)


def chrf(answer: str, reference: str) -> float:
    """Return sacrebleu's chrF2 of one answer, 0 to 100: n-grams of 1 to 6 characters, recall counts twice."""
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(answer, [reference]).score)


def rouge_l(answer: str, reference: str) -> float:
    """Return ROUGE-L of one answer, 0 to 1: F1 of the longest common subsequence of words, without stemming."""
    return float(_rouge().score(reference, answer)["rougeL"].fmeasure)


@functools.cache
def _rouge() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_Words())
