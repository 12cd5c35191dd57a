"""What an unused column may mean, by its name."""

import re
from typing import Literal

from toolkit.prepare.cells import name_key, tidy_name

Meaning = Literal["context", "system", "chat", "options"]

# Whole names, without case, spaces, `_` and `-`.
_WHOLE: dict[Meaning, re.Pattern[str]] = {
    "context": re.compile("sourcetext|input"),
    "system": re.compile("system(?:prompt|message)?"),
    "chat": re.compile("history|chathistory"),
    "options": re.compile("op[a-e]|(?:option|choice)[a-e0-9]"),
}
# Words of a name, of which the first kind that fits is taken: `chat_history` is a chat.
_WORDS: dict[Meaning, re.Pattern[str]] = {
    "options": re.compile("options?|choices?"),
    "chat": re.compile("messages|conversations?|dialog(?:ue)?s?|chats?|turns"),
    "context": re.compile(
        "contexts?|ctxs?|passages?|paragraphs?|excerpts?|documents?|background|evidence|abstracts?|articles?|knowledge|"
        "facts?|vignettes?|descriptions?|history|anamnesis"
    ),
}
_SYSTEM = re.compile("prompt|messages?|instructions?|text")
# A last word of names such as `history_id` or `document_url`: these tell about a text, and are not the text.
_ABOUT = re.compile(
    "ids?|uid|uuid|index|idx|key|hash|urls?|uri|links?|doi|pmid|path|file|filename|type|kind|format|category|label|tags?|"
    "source|name|title|author|authors|date|time|year|version|count|counts|num|number|numbers|len|length|size|tokens|"
    "score|scores|level|grade|quality|rank|lang|language|model|status|flag|embedding|embeddings"
)
_COUNTS = frozenset({"is", "has", "n", "num", "no", "number"})  # a first word: `num_turns`, `has_context`
# With these words a name means another thing: `correct_option`, `edit_history`.
_NOT: dict[Meaning, frozenset[str]] = {
    "options": frozenset({"correct", "right", "best", "gold", "true", "chosen", "selected"}),
    "context": frozenset({"edit", "version", "revision", "change"}),
}
# The last word of a name that is written as one in small letters: `patienthistory`, `answeroptions`.
_JOINED: dict[Meaning, re.Pattern[str]] = {
    "options": re.compile(".+(?:options|choices)"),
    "chat": re.compile(".+(?:messages|conversations?|dialogues?)"),
    "context": re.compile(
        ".+(?:contexts?|passages?|paragraphs?|background|evidence|abstracts?|articles?|vignettes?|history|anamnesis)"
    ),
}
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+|\d+")


def bare(name: str) -> str:
    """Return a name without case, spaces, `_` and `-`."""
    return name_key(name).replace("_", "").replace("-", "")


def meaning(name: str) -> Meaning | None:
    """Say what a column holds by its whole name or a word inside it, such as `patient_history` or `answerChoices`."""
    for found, pattern in _WHOLE.items():
        if pattern.fullmatch(bare(name)):
            return found
    words = _words(name)
    if told_about(name):
        return None
    if "system" in words and any(map(_SYSTEM.fullmatch, words)):
        return "system"
    for found, pattern in _WORDS.items():
        if any(map(pattern.fullmatch, words)):
            return found if _NOT.get(found, frozenset()).isdisjoint(words) else None
    for found, pattern in _JOINED.items():
        if len(words) == 1 and pattern.fullmatch(words[0]):
            return None if words[0].startswith(tuple(_NOT.get(found, ()))) else found
    return None


def told_about(name: str) -> bool:
    """Tell whether a column holds something about a text, such as its number, and not a text."""
    words = _words(name)
    return not words or words[0] in _COUNTS or _ABOUT.fullmatch(words[-1]) is not None


def _words(name: str) -> list[str]:
    return [word.casefold() for word in _WORD.findall(tidy_name(name))]
