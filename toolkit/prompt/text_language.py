"""The language of texts: of one text, of most of many texts, and the share of each language."""

import re
from collections import Counter
from collections.abc import Callable, Sequence

from toolkit.core.records import spread
from toolkit.prompt.languages import count_letters, load_identifier, related

# The most likely language of a text, as an ISO 639 code, and its probability.
Identify = Callable[[str], tuple[str, float]]

SAMPLE = 64  # texts that are looked at, spread evenly over all
EXCERPT = 500  # characters of each
FEWEST_LETTERS = 20  # of a text that says anything about its language, and four times as many of all of them
SURE = 0.9  # probability of a language that is believed
MOST = 0.8  # share of the sampled texts that must be in it
FEW = 0.1  # share of them that may be no plain English without a closer look
UNSURE = "und"  # ISO 639's code of a language that is not determined
SHORT = 12  # words of a text in which one of them is enough
COMMON = 0.08  # share of an English text's words that are these, which no other language has
_ENGLISH = frozenset(("the", "and", "that", "with", "this", "from", "your", "you", "which", "when", "these", "they",
                      "their", "there", "who", "what", "how", "should", "than", "have", "been", "other", "most",
                      "would", "could", "does", "about"))  # fmt: skip
_WORDS = re.compile(r"[^\W\d_]+")
_NOT_LANGUAGES = {"", "zxx", "la"}  # Latin: names of diseases and bacteria are, in every language


def identify_language(text: str) -> tuple[str, float]:
    """Return py3langid's most likely language of a text, with the probability of it and of those mistaken for it."""
    return likeliest(load_identifier().rank(text))


def likeliest(ranked: Sequence[tuple[str, float]]) -> tuple[str, float]:
    """Return the first of ranked languages, with its probability and that of languages mistaken for it."""
    first = ranked[0][0]
    return first, sum(probability for code, probability in ranked if related(code, first))


def sure_language(text: str, identify: Identify = identify_language) -> str:
    """Return the language of a text as an ISO 639 code; "" if it is too short to say, or uncertain."""
    if count_letters(text) < FEWEST_LETTERS:
        return ""
    code, probability = identify(text)
    return code if probability >= SURE and code not in _NOT_LANGUAGES else ""


def main_language(texts: Sequence[str], identify: Identify = identify_language) -> str:
    """Return the ISO 639 code of the language that most texts are in; "" where they are mixed or too short to tell."""
    some = sampled(texts)
    if is_plain_english(some):
        return "en"
    whole = "\n".join(some)
    if count_letters(whole) < 4 * FEWEST_LETTERS:
        return ""
    code = sure_language(whole, identify)
    agreeing = sum(related(identify(text)[0], code) for text in some)
    return code if agreeing >= MOST * len(some) else ""


def language_shares(texts: Sequence[str], identify: Identify = identify_language) -> dict[str, float]:
    """Return code → share of the texts that say anything about their language, largest first; UNSURE for the rest.

    A language that is easily taken for a commoner one counts as that one. Plain English is known by its words, so that
    no model is loaded where nearly all is.
    """
    some = sampled(texts)
    others = [text for text in some if not _reads_english(text)]
    looked = sum(map(count_letters, some)) >= 4 * FEWEST_LETTERS and len(others) > FEW * len(some)
    codes = Counter(sure_language(text, identify) if looked else "" for text in others)
    counts = Counter({code or UNSURE: count for code, count in codes.items()})
    counts["en"] += len(some) - len(others)
    merged: Counter[str] = Counter()
    for code, count in counts.most_common():
        merged[next((commoner for commoner in merged if related(commoner, code)), code)] += count
    return {code: round(count / len(some), 4) for code, count in merged.most_common() if count}


def sampled(texts: Sequence[str]) -> list[str]:
    """Return the beginnings of texts, spread evenly, that say anything about their language."""
    some = [text[:EXCERPT] for text in spread([*texts], SAMPLE)]
    return [text for text in some if count_letters(text) >= FEWEST_LETTERS]


def is_plain_english(some: Sequence[str]) -> bool:
    """Tell whether most of some texts are surely English, by its commonest words: no other language is looked for."""
    return sum(map(count_letters, some)) >= 4 * FEWEST_LETTERS and sum(map(_reads_english, some)) >= MOST * len(some)


def _reads_english(text: str) -> bool:
    words = _WORDS.findall(text.lower())
    found = [word for word in words if word in _ENGLISH]
    return len(found) >= COMMON * len(words) and len(set(found)) >= (1 if len(words) < SHORT else 2)
