"""Answers of several systems side by side: words that differ from the trained model's answer are marked."""

import difflib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from toolkit.report.report_file import Asked
from toolkit.report.sources import HeldOutAnswer
from toolkit.report.words import clipped, shown

MOST_WORDS = 700  # of each answer that are compared
ALIKE = 0.3  # share of equal words below which marks would only say that everything differs
Kind = Literal["same", "added", "missing"]


@dataclass(frozen=True)
class Told:
    """One answer: its pieces, `added` where the compared one has other words, `missing` where it has more.

    `note` says what the marks do not.
    """

    system: str
    pieces: list[tuple[Kind, str]]
    note: str = ""


@dataclass(frozen=True)
class Beside:
    """A question with its reference answer and the answers of all systems."""

    row: int | None
    question: str
    reference: str
    answers: list[Told]


def marked(text: str, other: str) -> tuple[list[tuple[Kind, str]], str]:
    """Compare a text with another by words; return its pieces, and a note where there is nothing to mark."""
    if text == other:
        return plain(text), "word for word the trained model's"
    ours, theirs = re.findall(r"\s*\S+", text), re.findall(r"\s*\S+", other)
    if len(ours) > MOST_WORDS or len(theirs) > MOST_WORDS:
        return plain(text), "too long to be compared"
    bare, other_bare = ([word.strip() for word in words] for words in (ours, theirs))
    matcher = difflib.SequenceMatcher(None, other_bare, bare, autojunk=False)
    if matcher.ratio() < ALIKE:
        return plain(text), "differs throughout"
    pieces: list[tuple[Kind, str]] = []
    found: list[tuple[Kind, str]]
    for what, start, end, first, last in matcher.get_opcodes():
        if what == "equal":
            found = [("same", "".join(ours[first:last]))]
        else:
            found = [*_apart("missing", "".join(theirs[start:end])), *_apart("added", "".join(ours[first:last]))]
        for piece in found:
            if pieces and not pieces[-1][1][-1].isspace() and not piece[1][0].isspace():
                pieces.append(("same", " "))  # the first word of a text has no space before it
            pieces.append(piece)
    return pieces, ""


def _apart(kind: Kind, words: str) -> list[tuple[Kind, str]]:
    """Keep the space before words out of their mark."""
    bare = words.lstrip()
    pieces: list[tuple[Kind, str]] = [("same", words[: len(words) - len(bare)]), (kind, bare)]
    return [piece for piece in pieces if piece[1]]


def plain(text: str) -> list[tuple[Kind, str]]:
    """Return a text without marks."""
    return [("same", text)] if text else []


def side_by_side(found: Iterable[HeldOutAnswer], most: int) -> list[Beside]:
    """Compare each system's answer with the trained model's; a text is cut after `most` characters."""
    rows = []
    for one in found:
        texts = {name: clipped(shown(answer.text.strip()), most) for name, answer in one.answers.items()}
        told = []
        for name, text in texts.items():
            pieces, note = plain(text), ""
            if name != "trained" and "trained" in texts:
                pieces, note = marked(text, texts["trained"])
            if one.answers[name].ended is False:
                note = f"{note}; cut at the limit" if note else "cut at the limit"
            told.append(Told(name, pieces, note))
        rows.append(Beside(one.row, clipped(one.question, most), clipped(one.reference.strip(), most), told))
    return rows


def before_and_after(asked: Iterable[Asked], most: int) -> list[Beside]:
    """Show validation's answers, of the base and of the default quantization, the same way."""
    rows = []
    for one in asked:
        texts = {"base": one.before, "after training": one.after}
        told = [
            Told(name, plain(clipped(shown(text.strip()), most))) for name, text in texts.items() if text is not None
        ]
        rows.append(Beside(None, clipped(one.question, most), "", told))
    return rows
