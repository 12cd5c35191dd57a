"""Runs of words that answers share with training answers, word for word: how much a model learned by heart.

Words are hashed by a polynomial over 64-bit numbers, so that all runs of one length are hashed at once (numpy). Runs
grow by one word a round, and only where a shorter run was found: what is looked at shrinks quickly.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

# One character of Chinese or Japanese is a word; elsewhere letters, digits and marks above them belong together.
WORD = re.compile(r"[\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]|[^\W\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]+")
PART = 2_000_000  # words of training answers that are looked at together
USUAL = 4  # words of a run that most answers share with some other text
LEARNED = 20  # words of a run from which on it is hardly chance
_TABLE = 22  # bits of a hash that are looked up first
_FACTOR = 0x9E3779B97F4A7C15  # odd, so that it has an inverse among 64-bit numbers

Numbers = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Copied:
    """The longest run of an answer that a training answer has too: its words, the training row, the run's text."""

    words: int
    row: int | None
    text: str


def words_of(text: str) -> list[str]:
    """Return the words of a text in small letters, without marks between them."""
    return WORD.findall(text.lower())


def longest_runs(answers: Sequence[str], training: Iterable[tuple[int, str]]) -> list[Copied]:
    """Return for each answer its longest run of words that one of the training answers, given as (row, text), has."""
    numbers: dict[str, int] = {}
    asked = _Text.of(enumerate(answers), lambda word: numbers.setdefault(word, len(numbers)))
    best = [Copied(0, None, "")] * len(answers)
    for part in _parts(training, lambda word: numbers.get(word, len(numbers))):  # no answer has this number
        _search(asked, part, answers, best)
    return best


@dataclass(frozen=True)
class _Text:
    """Words of several texts after one another: `hashes` of the words before each place, powers, and text by place."""

    sums: Numbers
    powers: Numbers
    rows: Places
    left: Places  # words from each place to the end of its text

    @classmethod
    def of(cls, texts: Iterable[tuple[int, str]], number: Callable[[str], int]) -> "_Text":
        """Hash the words of texts by their numbers."""
        ids: list[int] = []
        rows: list[int] = []
        sizes: list[int] = []
        for row, text in texts:
            found = words_of(text)
            ids += map(number, found)
            rows.append(row)
            sizes.append(len(found))
        count = np.array(sizes, dtype=np.int64)
        ends = np.repeat(np.cumsum(count), count)
        values = _scattered(np.array(ids, dtype=np.uint64))
        inverse = pow(_FACTOR, -1, 1 << 64)
        falling = _powers(inverse, len(values))
        sums = np.concatenate([np.zeros(1, np.uint64), np.cumsum(values * falling, dtype=np.uint64)])
        left = ends - np.arange(len(values))
        return cls(sums, _powers(_FACTOR, len(values)), np.repeat(np.array(rows, dtype=np.int64), count), left)

    def hashes(self, places: Places, length: int) -> Numbers:
        """Hash the runs of `length` words that begin at some places."""
        return (self.sums[places + length] - self.sums[places]) * self.powers[places]


def _parts(training: Iterable[tuple[int, str]], number: Callable[[str], int]) -> Iterable[_Text]:
    held: list[tuple[int, str]] = []
    size = 0
    for row, text in training:
        held.append((row, text))
        size += len(text)
        if size >= 6 * PART:
            yield _Text.of(held, number)
            held, size = [], 0
    if held:
        yield _Text.of(held, number)


def _search(asked: _Text, part: _Text, answers: Sequence[str], best: list[Copied]) -> None:
    """Look for runs in a part of the training answers that are longer than the best ones so far.

    Shorter runs than `USUAL` are looked for only where an answer has no longer one: almost every word is in one.
    """
    starts = np.searchsorted(asked.rows, np.arange(len(answers)))
    shortest = min((one.words for one in best), default=0)
    places = np.arange(len(asked.rows))
    found = _rounds(asked, part, places, max(USUAL, shortest + 1), len(places))
    short = [row for row, one in enumerate(best) if one.words < USUAL - 1 and row not in found]
    if short:
        found |= _rounds(asked, part, places[np.isin(asked.rows, short)], shortest + 1, USUAL - 1)
    for answer, (size, place, row) in found.items():
        if size > best[answer].words:
            best[answer] = Copied(size, row, _text(answers[answer], place - int(starts[answer]), size))


def _rounds(asked: _Text, part: _Text, here: Places, length: int, most: int) -> dict[int, tuple[int, int, int]]:
    """Return by answer its longest run of `length` to `most` words: its words, its place, and the training row."""
    found: dict[int, tuple[int, int, int]] = {}
    there = np.arange(len(part.rows))
    while len(here) and len(there) and length <= most:
        here, there = here[asked.left[here] >= length], there[part.left[there] >= length]
        ours, theirs = asked.hashes(here, length), part.hashes(there, length)
        known = np.unique(ours)
        there, at = _within(there, theirs, known)
        seen = np.full(len(known), -1)
        seen[at] = there
        place = seen[np.searchsorted(known, ours)]
        here, place = here[place >= 0], place[place >= 0]
        answer_rows, index = np.unique(asked.rows[here], return_index=True)
        for answer, one in zip(answer_rows.tolist(), index.tolist(), strict=True):
            found[answer] = (length, int(here[one]), int(part.rows[place[one]]))
        length += 1
    return found


def _within(places: Places, hashes: Numbers, known: Numbers) -> tuple[Places, Places]:
    """Return the places whose hashes are among sorted known ones, and where in these each is."""
    if not len(known):
        return places[:0], places[:0]
    table = np.zeros(1 << _TABLE, dtype=bool)
    table[known >> np.uint64(64 - _TABLE)] = True
    likely = table[hashes >> np.uint64(64 - _TABLE)]
    places, hashes = places[likely], hashes[likely]
    at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    kept = known[at] == hashes
    return places[kept], at[kept]


def _text(text: str, first: int, count: int) -> str:
    """Return a run of words as it stands in a text."""
    found = list(WORD.finditer(text))
    return text[found[first].start() : found[first + count - 1].end()]


def _powers(factor: int, count: int) -> Numbers:
    values = np.full(count, factor, dtype=np.uint64)
    values[:1] = 1
    return np.cumprod(values, dtype=np.uint64)


def _scattered(ids: Numbers) -> Numbers:
    """Spread small numbers over 64 bits (the finalizer of splitmix64)."""
    mixed = (ids + np.uint64(1)) * np.uint64(_FACTOR)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
