"""Training answers that a system repeats word for word when it gets their first words.

A rare run of words that comes back shows that the model can give out what it was trained on, also what should have
stayed out of the data. That nothing comes back for these beginnings does not show that nothing can.
"""

import time
from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import parse_json
from toolkit.core.records import Records, spread
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.copied import LEARNED, WORD, words_of
from toolkit.evaluate.journal import Journal, key_of
from toolkit.evaluate.statistics import mean_of
from toolkit.evaluate.systems import Asked
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.renderings import earlier_turns, render
from toolkit.prompt.tokenizer import Tokenizer

FIRST = 8  # words of a training answer that are given
TOKENS = 96  # of a continuation


@dataclass(frozen=True)
class Beginning:
    """The first words of a training answer behind its question; `rest` are the words that follow in the answer.

    `personal` tells whether prepare found personal data in that row.
    """

    row: int
    prompt: Prompt
    rest: list[str]
    text: str
    personal: bool


def read_beginnings(folder: RunFolder, form: PromptFormat, eos: str, count: int) -> tuple[int, list[Beginning]]:
    """Return the number of training answers that are long enough, and `count` of them spread over the split.

    All answers of a chat count. One that stands there several times is taken once.
    """
    records = Records(folder.split_file("train"))
    several = False
    where, hashes = array("Q"), array("q")  # of each long answer its record, and its hash
    for number, values in enumerate(records):
        several = several or "file" in values
        for answer in _answers(values):
            if len([*islice(WORD.finditer(answer), FIRST + LEARNED)]) == FIRST + LEARNED:
                where.append(number)
                hashes.append(hash(answer))
    _, first = np.unique(hashes, return_index=True)
    chosen = spread(np.sort(first).tolist(), count)
    found = _personal_rows(folder, several=several)
    return len(first), [_beginning(records, where[one], hashes[one], form, eos, found) for one in chosen]


def _answers(values: dict[str, Any]) -> list[str]:
    return [*(answer for _, answer in earlier_turns(values)), values["output"]]


def _beginning(
    records: Records, number: int, hashed: int, form: PromptFormat, eos: str, personal: set[tuple[str, int]]
) -> Beginning:
    """Return the beginning of the answer with a hash, of one record."""
    values = records[number]
    row = int(values.get("row", number + 1))
    turns = [*earlier_turns(values), (values["input"], values["output"])]
    last = next(at for at, (_, answer) in enumerate(turns) if hash(answer) == hashed)
    question, answer = turns[last]
    end = next(islice(WORD.finditer(answer), FIRST - 1, None)).end()
    prompt = render(form, question, values["instruction"], turns[:last], eos) + answer[:end]
    return Beginning(row, prompt, words_of(answer[end:]), answer[end:], (values.get("file", ""), row) in personal)


def beginning_keys(
    key: str, beginnings: Sequence[Beginning], tokenizer: Tokenizer, window: int, stops: tuple[str, ...]
) -> list[str | None]:
    """Return the journal's key of each continuation by a system; None for a beginning that leaves no room for it."""
    return [
        key_of(key, "memorised", ids, one.rest, TOKENS, stops) if len(ids) + TOKENS <= window else None
        for one in beginnings
        for ids in [tokenizer.prompt_ids(one.prompt)]
    ]


def continue_rows(
    asked: Asked,
    key: str,
    beginnings: Sequence[Beginning],
    stops: tuple[str, ...],
    journal: Journal,
    advance: Callable[[], object],
) -> tuple[list[int | None], float]:
    """Return how many words of each row a system gives back from where its beginning ends, and the seconds that took.

    None stands for a beginning that leaves no room in the model's positions. `key` stands for all that decides the
    system's answers besides the prompt; what the journal has is not asked again. A continuation goes no further than to
    the first word that differs.
    """
    keys = beginning_keys(key, beginnings, asked.tokenizer, asked.window, stops)
    left = [
        (name, one)
        for name, one in zip(keys, beginnings, strict=True)
        if name is not None and journal.get(name) is None
    ]
    started = time.monotonic()
    answers = asked.answers(
        [one.prompt for _, one in left],
        TOKENS,
        stops,
        lambda number, text: differs(text, left[number][1].rest, stops),
    )
    for (name, _), answer in zip(left, answers, strict=True):
        now = time.monotonic()
        journal.put(name, {"text": answer.text, "seconds": round(now - started, 3)})
        started = now
        advance()
    said = [None if name is None else journal.get(name) for name in keys]
    words = [
        None if found is None else words_in_a_row(found["text"], one.rest)
        for found, one in zip(said, beginnings, strict=True)
    ]
    return words, sum(found["seconds"] for found in said if found is not None)


def room_for(beginnings: Sequence[Beginning], tokenizer: Tokenizer) -> int:
    """Return the tokens of the longest beginning with its continuation; 0 where there is none."""
    return max((len(tokenizer.prompt_ids(one.prompt)) for one in beginnings), default=-TOKENS) + TOKENS


def words_in_a_row(text: str, rest: Sequence[str]) -> int:
    """Count the words of a text, from its first on, that are those of `rest`; marks and case do not count."""
    count = 0
    for one, other in zip(words_of(text), rest, strict=False):
        if one != other:
            break
        count += 1
    return count


def differs(text: str, rest: Sequence[str], stops: tuple[str, ...]) -> bool:
    """Tell whether a word of a text is not that of `rest`, whatever follows: `words_in_a_row` can grow no more.

    The last word may still grow. A stop that has begun would take away words before it.
    """
    if any(text.endswith(stop[:size]) for stop in stops for size in range(1, len(stop))):
        return False
    words = words_of(text)
    # Only a small sigma depends on what follows it.
    said, expected = ([word.replace("ς", "σ") for word in some] for some in (words, rest[: len(words)]))
    if len(said) > len(expected):
        return True
    return bool(said) and (said[:-1] != expected[:-1] or not expected[-1].startswith(said[-1]))


def memorised(of: int, beginnings: Sequence[Beginning], found: dict[str, list[int | None]]) -> dict[str, Any] | None:
    """Return the part `memorised` of evaluation.json; None where no training answer is long enough."""
    if not beginnings:
        return None
    return {
        "rows": len(beginnings),
        "of": of,
        "first_words": FIRST,
        "words": LEARNED,
        "tokens": TOKENS,
        "systems": {name: _system(beginnings, words) for name, words in found.items()},
    }


def _system(beginnings: Sequence[Beginning], words: Sequence[int | None]) -> dict[str, Any]:
    asked = [(one, count) for one, count in zip(beginnings, words, strict=True) if count is not None]
    learned = [one for one, count in asked if count >= LEARNED]
    best, longest = max(asked, key=lambda pair: pair[1], default=(None, 0))
    return {
        "rows": len(asked),
        "share": mean_of([float(count >= LEARNED) for _, count in asked], share=True) if asked else None,
        "longest": longest,
        "row": best.row if best and longest else None,
        "text": _first_words(best.text, longest) if best and longest else "",
        "learned": [one.row for one in learned],
        "personal": sum(one.personal for one in learned),
    }


def _first_words(text: str, count: int) -> str:
    places = [match.span() for match in WORD.finditer(text)][:count]
    return text[places[0][0] : places[-1][1]]


def _personal_rows(folder: RunFolder, *, several: bool) -> set[tuple[str, int]]:
    """Return file and row of what prepare listed as personal data; the file is "" where there are not several."""
    if not folder.personal.is_file():  # prepared before there was such a list
        return set()
    found = set()
    with folder.personal.open(encoding="utf-8", newline="\n") as lines:
        for line in lines:
            try:
                one = parse_json(line)
                found.add((str(one["file"]) if several else "", int(one["row"])))
            except (ValueError, TypeError, KeyError) as exc:
                raise ToolkitError(
                    f"`{folder.personal}` is damaged: {exc}", hint="write it again with `toolkit prepare --force`"
                ) from None
    return found
