"""How much two texts share of their words, and a search for all texts that share enough: exact, by their rarest words.

50,000 questions take 2 s; scikit-learn's CountVectorizer and a sparse product take 38 s. Of very many texts MinHash
(rensa) finds which may have a near copy: the others need no comparison.
"""

import math
import re
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np

ROUNDING = 1e-9  # a bound that is a whole number except for floating point must not be rounded up

# Of MinHash:
SLOTS = 256  # of a signature
MISSED = 0.005  # share of the pairs at the threshold itself that may be missed
LONGEST = 16  # slots of a band
AT_ONCE = 4096  # texts
SEED = 42

# Scripts that write no spaces between words: Thai, Lao, Burmese, Khmer, Japanese, Chinese.
_UNSPACED = re.compile(
    "[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]+"
)


class Words(NamedTuple):
    """The words of a text: how many different ones, and the numbers of those that another text has too."""

    size: int
    shared: "array[int]"


def distinct_words(normalised: str) -> frozenset[str]:
    """Return the words of a normalised text; of a script without spaces, each two characters that follow each other."""
    words = frozenset(normalised.split())
    if normalised.isascii() or not _UNSPACED.search(normalised):
        return words
    return frozenset(part for word in words for part in _parts(word))


def _parts(word: str) -> Iterator[str]:
    yield from filter(None, _UNSPACED.split(word))
    for match in _UNSPACED.finditer(word):
        run = match[0]
        yield from (run[at : at + 2] for at in range(max(1, len(run) - 1)))


def numbered(texts: Iterable[frozenset[str]]) -> dict[str, int]:
    """Number the words that several texts have, the rarest first: a word of one text alone leads to no other."""
    counts = Counter(word for words in texts for word in words)
    shared = ((count, word) for word, count in counts.items() if count > 1)
    return {word: number for number, (_, word) in enumerate(sorted(shared))}


def words_by_number(words: frozenset[str], numbers: dict[str, int]) -> Words:
    """Return the words as numbers, the rarest first."""
    return Words(len(words), array("I", sorted(numbers[word] for word in words if word in numbers)))


def joined(one: Words, other: Words) -> Words:
    """Return the words of two texts that have none in common."""
    return Words(one.size + other.size, array("I", sorted(one.shared + other.shared)))


def jaccard(one: Words, other: Words) -> float:
    """Return the share of the words of two texts that both have, 0 to 1."""
    both = len(frozenset(one.shared).intersection(other.shared))
    return both / (one.size + other.size - both)


class Alike:
    """A search among texts for those whose Jaccard with another text may reach a threshold.

    Two sets of a and b words reach a Jaccard of t only if they share α = ⌈t/(1+t)·(a+b)⌉ words. With words in one
    order for all (rarest first), the first shared one then has at least α words from it to the end in both sets (the
    positional filter of PPJoin, Xiao et al. 2008). So a text is held under its rarest words only, each with the number
    of its words and of those from this one on.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        # Word → words of the text → words from this one on → numbers of the texts.
        self._held: dict[int, dict[int, dict[int, list[int]]]] = defaultdict(lambda: defaultdict(dict))
        self._gone: set[int] = set()

    def add(self, number: int, words: Words) -> None:
        """Hold a text under a number of the caller's."""
        for word, rest in self._rarest(words):
            self._held[word][words.size].setdefault(rest, []).append(number)

    def remove(self, number: int) -> None:
        """Yield this text no more."""
        self._gone.add(number)

    def candidates(self, words: Words) -> Iterator[int]:
        """Yield the numbers of all texts held that can reach the threshold, each once."""
        seen: set[int] = set()
        share = self._threshold / (1 + self._threshold)
        least = math.ceil(self._threshold * words.size - ROUNDING)
        for word, rest in self._rarest(words):
            held = self._held.get(word)
            if held is None:
                continue
            # Of a larger text more words must be shared than are left, from some size on.
            most = int((rest + ROUNDING) / share) - words.size
            for size in range(least, most + 1) if most - least < len(held) else list(held):
                needed = share * (words.size + size) - ROUNDING
                texts = held.get(size) if least <= size <= most else None
                if texts is None:
                    continue
                for other_rest, numbers in texts.items():
                    if other_rest < needed:
                        continue
                    if self._gone:
                        numbers[:] = [number for number in numbers if number not in self._gone]
                    for number in numbers:
                        if number not in seen:
                            seen.add(number)
                            yield number

    def _rarest(self, words: Words) -> Iterator[tuple[int, int]]:
        """Yield the words that may be the first shared one, rarest first, and how many there are from each on."""
        # The smallest partner allowed has ⌈t·size⌉ words, all of which must be shared: no later word can be the first.
        rest = len(words.shared)
        last = math.ceil(self._threshold * words.size - ROUNDING)
        for position in range(rest - last + 1):
            yield words.shared[position], rest - position


def slots_of_a_band(threshold: float) -> int:
    """Return how many slots must be alike, at most, so that pairs of a Jaccard of `threshold` are surely found.

    Of b bands of r slots, one is alike with probability 1 - (1 - tʳ)ᵇ.
    """
    return max(r for r in range(1, LONGEST + 1) if r == 1 or (1 - threshold**r) ** (SLOTS // r) <= MISSED)


def with_a_twin(texts: Iterable[frozenset[str]], threshold: float) -> Sequence[int]:
    """Return the numbers of the texts that agree with another one in a band; nearly all that reach the threshold do.

    Needs 4 bytes for each text and band, 128 MB for a million at 0.8.
    """
    from rensa import RMinHash

    size = slots_of_a_band(threshold)
    bands = SLOTS // size
    factors = np.random.default_rng(SEED).integers(2**63, size=size, dtype=np.uint64) | np.uint64(1)
    parts = []
    left = map(list, texts)
    while batch := list(islice(left, AT_ONCE)):
        rows = RMinHash.digest_matrix_from_token_sets(batch, SLOTS, SEED).to_rows()
        slots = np.array(rows, np.uint64)[:, : bands * size].reshape(-1, bands, size)
        parts.append(((slots * factors).sum(2) >> np.uint64(32)).astype(np.uint32))
    keys = np.concatenate(parts)
    found = np.zeros(len(keys), bool)
    for band in range(bands):
        order = np.argsort(keys[:, band], kind="stable")
        same = np.diff(keys[order, band]) == 0
        found[order[1:][same]] = True
        found[order[:-1][same]] = True
    return list(map(int, np.flatnonzero(found)))
