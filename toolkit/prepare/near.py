"""Near-duplicates: rows that say nearly the same, and held-out questions that are nearly in another split."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from toolkit.core.spool import Chosen, Spool
from toolkit.prepare.clean import SHOWN, Record, Rejection, normalise
from toolkit.prepare.groups import question_shown
from toolkit.prepare.likeness import (
    Alike,
    Words,
    distinct_words,
    jaccard,
    joined,
    numbered,
    with_a_twin,
    words_by_number,
)
from toolkit.prepare.split import Splits

NEAR_DUPLICATE = "near-duplicate"
EXACT = 20_000  # rows of which each is compared; of more, only those that MinHash finds to have a twin


@dataclass(frozen=True)
class NearDuplicate:
    """A held-out question, and the question in another split that shares most of its words with it."""

    question: str
    split: str
    other: str
    other_split: str
    overlap: float


class _Questions:
    """Questions of splits, searched for those that nearly are another one."""

    def __init__(self, splits: Splits, threshold: float) -> None:
        self._threshold = threshold
        self._numbers = numbered(distinct_words(record.normalised) for some in splits.values() for record in some)
        self._search = Alike(threshold)
        self.held: list[tuple[Record, str]] = []
        self._words: list[Words] = []
        self._number_of: dict[tuple[str, str], int] = {}

    def hold(self, record: Record, split: str) -> None:
        """Hold the question of a record, once for each split."""
        number = len(self.held)
        if self._number_of.setdefault((record.normalised, split), number) == number:
            words = words_by_number(distinct_words(record.normalised), self._numbers)
            self._search.add(number, words)
            self._words.append(words)
            question = replace(record, answer="", history=record.history[:1])  # which alone is said
            self.held.append((question, split))

    def leave(self, number: int) -> None:
        """Look for this question no more."""
        self._search.remove(number)

    def same(self, record: Record) -> tuple[int, float] | None:
        """Return the number of a question that is the same."""
        found = (self._number_of.get((record.normalised, split)) for split in ("test", "val"))
        return next(((number, 1.0) for number in found if number is not None), None)

    def near(self, record: Record) -> Iterator[tuple[int, float]]:
        """Yield the number of each other question with a Jaccard of at least the threshold, and that Jaccard."""
        words = words_by_number(distinct_words(record.normalised), self._numbers)
        for number in self._search.candidates(words):
            if self.held[number][0].normalised != record.normalised:
                overlap = jaccard(words, self._words[number])
                if overlap >= self._threshold:
                    yield number, overlap


def near_duplicates(splits: Splits, threshold: float) -> list[NearDuplicate]:
    """Find every val or test question that is nearly in another split: Jaccard of its words ≥ `threshold`.

    Each comes with one other question: of a long template, every question nearly is every other.
    """
    questions = _Questions(splits, threshold)
    for name in ("val", "test"):
        for record in splits[name]:
            questions.hold(record, name)
    found: dict[int, NearDuplicate] = {}
    for split, records in splits.items():
        for record in records:
            for number, overlap in questions.near(record):
                held, name = questions.held[number]
                if name != split:
                    pair = (question_shown(held), name, question_shown(record), split)
                    found.setdefault(number, NearDuplicate(*pair, overlap))
                    questions.leave(number)
    return [found[number] for number in sorted(found)]


def drop_across(splits: Splits, threshold: float) -> tuple[Splits, list[Rejection]]:
    """Drop the rows that would leak: of train those that nearly ask what val or test asks, of val what test asks.

    Test keeps all its rows. `near_duplicates` then finds none, and no question is in two splits.
    """
    questions = _Questions(splits, threshold)
    kept = {name: Spool[Record]() for name in splits}
    dropped = []
    kept["test"].extend(splits["test"])
    for above, name in (("test", "val"), ("val", "train")):
        for record in kept[above]:
            questions.hold(record, above)
        for record in splits[name]:
            near = questions.same(record) or next(questions.near(record), None)
            if near is None:
                kept[name].append(record)
            else:
                twin, split = questions.held[near[0]]
                dropped.append(_dropped(record, twin, near[1], split))
    return {**kept}, dropped


def drop_near(records: Sequence[Record], threshold: float) -> tuple[Sequence[Record], list[Rejection]]:
    """Keep the first of rows that say nearly the same: Jaccard of the questions' words and the answers' ≥ `threshold`.

    Rows with different instructions are different. Exact up to `EXACT` rows; of more, `with_a_twin` may miss some.
    """
    some: Sequence[int] = range(len(records))
    if len(records) > EXACT:
        some = with_a_twin((asked | said for asked, said in map(_both, records)), threshold)
    numbers = numbered(asked | said for asked, said in (_both(records[number]) for number in some))
    search = Alike(threshold)
    kept: dict[int, tuple[Words, Words]] = {}
    dropped: dict[int, Rejection] = {}
    for number in some:
        record = records[number]
        asked, said = (words_by_number(words, numbers) for words in _both(record))
        # Where both reach the threshold, the words of question and answer together do.
        whole = joined(asked, said)
        for other in search.candidates(whole):
            overlap = min(jaccard(asked, kept[other][0]), jaccard(said, kept[other][1]))
            if overlap >= threshold and records[other].instruction == record.instruction:
                dropped[number] = _dropped(record, records[other], overlap)
                break
        else:
            search.add(number, whole)
            kept[number] = asked, said
    left = array("Q", (number for number in range(len(records)) if number not in dropped))
    return Chosen(records, left), [*dropped.values()]


def _both(record: Record) -> tuple[frozenset[str], frozenset[str]]:
    """Return the words of the question, and those of the answer with a mark that makes them other words.

    Of a chat these are its first question, and all that follows.
    """
    follows = record.answer
    if record.history:
        follows = "\n".join([*(text for turn in record.history for text in turn), record.question, record.answer])
    said = distinct_words(normalise(follows))
    return distinct_words(record.normalised), frozenset(f"{word} " for word in said)


def _dropped(record: Record, twin: Record, overlap: float, split: str = "") -> Rejection:
    text = f"{record.question} | {record.answer}"[:SHOWN]
    detail = f"{overlap:.2f} like {twin.where}" + (f", which {split} holds" if split else "")
    near: dict[str, Any] = {"file": twin.file, "row": twin.number, "likeness": round(overlap, 4), "split": split}
    near = {key: value for key, value in near.items() if value}
    return Rejection(record.number, record.line, NEAR_DUPLICATE, text, detail, file=record.file, near=near)
