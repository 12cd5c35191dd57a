"""The language of the answers, and whether the prompt is in it."""

import contextlib
import re
import shlex
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.files import spread
from toolkit.core.input_settings import DataSettings, PromptSettings
from toolkit.prepare.clean import Record
from toolkit.prepare.division import rows_of
from toolkit.prepare.read import read_source
from toolkit.prepare.source import Source
from toolkit.prompt.languages import SENTENCES, count_letters, language_code, language_name, load_identifier, related

# The most likely language of a text, as an ISO 639 code, and its probability.
Identify = Callable[[str], tuple[str, float]]

SAMPLE = 64  # answers that are looked at, spread evenly over the records
EXCERPT = 500  # characters of each
FEWEST_LETTERS = 20  # of a text that says anything about its language, and four times as many of all of them
SURE = 0.9  # probability of a language that is believed
MOST = 0.8  # share of the sampled answers that must be in it
_DEFAULT = str(PromptSettings.model_fields["instruction"].default)
SHORT = 12  # words of a text in which one of them is enough
COMMON = 0.08  # share of an English text's words that are these, which no other language has
_ENGLISH = frozenset(("the", "and", "that", "with", "this", "from", "your", "you", "which", "when", "these", "they",
                      "their", "there", "who", "what", "how", "should", "than", "have", "been", "other", "most",
                      "would", "could", "does", "about"))  # fmt: skip
_WORDS = re.compile(r"[^\W\d_]+")
_NOT_LANGUAGES = {"", "zxx", "la"}  # Latin: names of diseases and bacteria are, in every language
_MARKS = re.compile(r"<\|[^|>]*\|>|<[^<>\s]*>|\[/?[A-Z]+\]|\{instruction\}|\{input\}|[#\d]+")


@contextlib.contextmanager
def identifier(texts: Sequence[str] = ()) -> Iterator[Identify]:
    """Yield py3langid, which loads its model (0.5 s of CPU) while the caller works, until the first call.

    Where the `texts` are plain English it is loaded by the first call, if there is one.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = [] if texts and is_plain_english(_sampled(texts)) else [pool.submit(load_identifier)]
        yield lambda text: _likeliest((loading[0].result() if loading else load_identifier()).rank(text))


def _sampled(texts: Sequence[str]) -> list[str]:
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


def _likeliest(ranked: list[tuple[str, float]]) -> tuple[str, float]:
    """Return the first of ranked languages, with its probability and that of languages mistaken for it."""
    first = ranked[0][0]
    return first, sum(probability for code, probability in ranked if related(code, first))


def main_language(texts: list[str], identify: Identify) -> str:
    """Return the ISO 639 code of the language that most texts are in; "" where they are mixed or too short to tell."""
    some = _sampled(texts)
    if is_plain_english(some):
        return "en"
    whole = "\n".join(some)
    if count_letters(whole) < 4 * FEWEST_LETTERS:
        return ""
    code = _sure_language(whole, identify)
    agreeing = sum(related(identify(text)[0], code) for text in some)
    return code if agreeing >= MOST * len(some) else ""


def _sure_language(text: str, identify: Identify) -> str:
    if count_letters(text) < FEWEST_LETTERS:
        return ""
    code, probability = identify(text)
    return code if probability >= SURE and code not in _NOT_LANGUAGES else ""


def foreign_prompt(settings: PromptSettings, records: list[Record], language: str, identify: Identify) -> str:
    """Say that the prompt is in, or asks for, another language than `language`, which the answers are in; "" if not.

    The default instruction counts only where a record uses it. A text whose language is uncertain gets no warning.
    """
    if not language:
        return ""
    name = language_name(language)
    default = any(record.instruction == settings.instruction for record in records)
    if settings.preset.startswith("alpaca"):
        asked = language_code(settings.language)
        if not asked or related(asked, language):
            return ""
        said, change = f"the prompt asks for them in {settings.language}", [f"prompt.language={name}"]
    else:
        own = _MARKS.sub(" ", f"{settings.prefix} {settings.user_turn} {settings.suffix}")
        text = f"{own} {settings.instruction if default else ''}".strip()
        found = "en" if text == _DEFAULT else _sure_language(text, identify)
        if not found or related(found, language):
            return ""
        said, change = f"the prompt is in {language_name(found)}", []
        if count_letters(own) >= FEWEST_LETTERS:
            return (
                f"the answers are in {name}, but {said}: write prompt.prefix, prompt.user_turn and prompt.instruction "
                f"in {name}{_whole_prompt(language)}"
            )
    if default and settings.preset != "alpaca-no-input":
        change.append(f"prompt.instruction={_instruction(language)}")
    options = " ".join(f"--set {shlex.quote(each)}" for each in change)
    return f"the answers are in {name}, but {said}: `{options}`{_whole_prompt(language)}"


def _instruction(language: str) -> str:
    if language in SENTENCES:
        return SENTENCES[language].instruction
    return _DEFAULT if language == "en" else f"TEXT IN {language_name(language).upper()}"


def _whole_prompt(language: str) -> str:
    if language not in SENTENCES:
        return ""
    return f"; `toolkit init DIR --data FILE` writes a whole prompt in {language_name(language)}"


def file_language(path: Path) -> str:
    """Return the language code of a data file's answers; "" where it is uncertain, or the columns are not found.

    Only the first rows of a large file are read. Raises ToolkitError if the file cannot be read.
    """
    config = Config(data=DataSettings(personal="off"))
    table = read_source(Source(path), config.data, first_rows=True)
    try:
        rows = rows_of([table], config)
    except ToolkitError as exc:
        console.warn(exc.message)
        return ""
    answers = [record.answer for record in rows.records]
    with identifier(answers) as identify:
        return main_language(answers, identify)
