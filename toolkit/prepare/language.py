"""The language of the answers, and whether the prompt is in it."""

import contextlib
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings, PromptSettings
from toolkit.core.records import spread
from toolkit.prepare.clean import Record
from toolkit.prepare.division import rows_of
from toolkit.prepare.read import read_source
from toolkit.prepare.source import Source
from toolkit.prompt.languages import (
    SENTENCES,
    asked_language,
    count_letters,
    language_code,
    language_name,
    load_identifier,
    related,
)
from toolkit.prompt.text_language import (
    FEWEST_LETTERS,
    SAMPLE,
    UNSURE,
    Identify,
    is_plain_english,
    likeliest,
    main_language,
    sampled,
    sure_language,
)
from toolkit.prompt.thoughts import without_thoughts

_DEFAULT = str(PromptSettings.model_fields["instruction"].default)
SEVERAL = 0.2  # share of the answers in a second language, from which on the prompt should not name one
SAID = 0.05  # share of a second language that is said
_MARKS = re.compile(r"<\|[^|>]*\|>|<[^<>\s]*>|\[/?[A-Z]+\]|\{instruction\}|\{input\}|[#\d]+")


@contextlib.contextmanager
def identifier(texts: Sequence[str] = ()) -> Iterator[Identify]:
    """Yield py3langid, which loads its model (0.5 s of CPU) while the caller works, until the first call.

    Where the `texts` are plain English it is loaded by the first call, if there is one.
    """
    with ThreadPoolExecutor(1) as pool:
        loading = [] if texts and is_plain_english(sampled(texts)) else [pool.submit(load_identifier)]
        yield lambda text: likeliest((loading[0].result() if loading else load_identifier()).rank(text))


def some_answers(records: Sequence[Record]) -> list[str]:
    """Return the answers of records, spread evenly, that are looked at, without thoughts: often these are English."""
    return [without_thoughts(record.answer) for record in spread(records, SAMPLE)]


def foreign_prompt(settings: PromptSettings, records: Sequence[Record], language: str, identify: Identify) -> str:
    """Say that the prompt is in, or asks for, another language than `language`, which the answers are in; "" if not.

    The default instruction counts only where a record uses it. A text whose language is uncertain gets no warning.
    """
    if not language:
        return ""
    name = language_name(language)
    default = any(record.instruction == settings.instruction for record in records)
    alpaca = settings.preset.startswith("alpaca")
    asked = language_code(settings.language) if alpaca else ""
    wanted = asked_language(settings.instruction) if default and settings.preset != "alpaca-no-input" else ""
    if asked and not related(asked, language):
        said, change = f"the prompt asks for them in {settings.language}", [f"prompt.language={name}"]
    elif wanted and not related(wanted, language):
        said, change = f"the instruction asks for them in {language_name(wanted)}", []
    elif alpaca or wanted:
        return ""
    else:
        own = _MARKS.sub(" ", f"{settings.prefix} {settings.user_turn} {settings.suffix}")
        text = f"{own} {settings.instruction if default else ''}".strip()
        found = "en" if text == _DEFAULT else sure_language(text, identify)
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


def languages_said(shares: Mapping[str, float]) -> str:
    """Say which languages the answers are in, where a second one is not rare; "" else."""
    known = {code: share for code, share in shares.items() if code != UNSURE}
    if sum(share >= SAID for share in known.values()) < 2:
        return ""
    return "languages of the answers: " + ", ".join(f"{language_name(code)} {known[code]:.0%}" for code in known)


def several_languages(settings: PromptSettings, shares: Mapping[str, float]) -> str:
    """Warn of a prompt that asks for one language where the answers are in several; "" else."""
    asked = language_code(settings.language)
    several = [code for code, share in shares.items() if share >= SEVERAL and code != UNSURE]
    if len(several) < 2 or not asked or not settings.preset.startswith("alpaca"):
        return ""
    names = " and ".join(map(language_name, several))
    return (
        f"the answers are in {names}, but the prompt asks for {settings.language} alone: "
        "`--set prompt.language=` asks for none"
    )


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
        console.warn(f"{exc.message}; `toolkit prepare` will stop there: {exc.hint}")
        return ""
    answers = some_answers(rows.records)
    with identifier(answers) as identify:
        return main_language(answers, identify)
