"""Which answers a clinician compares, in which random order, and the key that names their systems.

Each question is shown once, in one pair. If it came twice, the trained model's answer would too, and be known by that.
"""

import hashlib
import json
import random
import secrets
from collections.abc import Iterable
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from toolkit.core.console import warn
from toolkit.core.errors import ToolkitError
from toolkit.core.files import write_text
from toolkit.core.parsing import LARGEST_JSON, parse_json, read_bounded
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.thoughts import without_thoughts

Pair = tuple[str, str]  # two systems; the second is the one that is said to be better or worse


class KeyItem(BaseModel):
    """One comparison of the sheet: its number, the test row, the pair, and which system is Answer 1."""

    model_config = ConfigDict(frozen=True)

    item: int
    row: int
    a: str
    b: str
    first: str


class Identical(BaseModel):
    """How many of a pair's questions have the same text from both systems; those are not shown."""

    model_config = ConfigDict(frozen=True)

    a: str
    b: str
    questions: int
    identical: int


class SheetKey(BaseModel):
    """The key of a sheet: what unblinds it. `answers` is the SHA-256 of the answers of its pairs' systems."""

    model_config = ConfigDict(frozen=True)

    version: Literal[1] = 1
    run: str
    sheet: str
    seed: str
    answers: str
    items: list[KeyItem]
    pairs: list[Identical]

    @property
    def of_pairs(self) -> list[Pair]:
        """The pairs of systems that the sheet compares."""
        return [(pair.a, pair.b) for pair in self.pairs]


def answered(evaluation: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the questions with the answers of all systems; raises ToolkitError where there is none."""
    held_out = evaluation.get("held_out")
    found = held_out.get("answers") if isinstance(held_out, dict) else None
    if not found:
        raise ToolkitError("there are no answers to compare", hint="write them with `toolkit evaluate`")
    return list(found)


def answers_hash(evaluation: dict[str, Any], pairs: Iterable[Pair]) -> str:
    """Return the SHA-256 (hex) of all questions, with the answers of the systems of some pairs.

    Votes belong to these texts: they still count where a further system was asked.
    """
    systems = {name for pair in pairs for name in pair}
    texts = [
        [
            entry["row"],
            entry["question"],
            {name: one["text"] for name, one in sorted(entry["answers"].items()) if name in systems},
        ]
        for entry in answered(evaluation)
    ]
    return hashlib.sha256(json.dumps(texts, ensure_ascii=True).encode()).hexdigest()


def compared_pairs(evaluation: dict[str, Any], default: str) -> list[Pair]:
    """Return base against trained and trained against the default quantization, where both have answers."""
    there = {name for entry in answered(evaluation) for name in entry["answers"]}
    return [pair for pair in (("base", "trained"), ("trained", default)) if there.issuperset(pair)]


def shown_answer_of(entry: dict[str, Any], system: str) -> str | None:
    """Return a system's answer to a question, without thoughts and blanks around it; None where it has none.

    Thoughts would unblind: often one system of a pair alone has them.
    """
    found = entry["answers"].get(system)
    return None if found is None else without_thoughts(str(found["text"])).strip()


def differing(entries: list[dict[str, Any]], pair: Pair) -> tuple[list[dict[str, Any]], int]:
    """Return the questions to which both systems have answers that differ, and how many have the same text."""
    both = [entry for entry in entries if all(shown_answer_of(entry, name) is not None for name in pair)]
    different = [entry for entry in both if shown_answer_of(entry, pair[0]) != shown_answer_of(entry, pair[1])]
    return different, len(both) - len(different)


def draw_key(run: str, evaluation: dict[str, Any], default: str, seed: str) -> SheetKey:
    """Draw which question is shown in which pair, where it stands, and which answer comes first.

    The pairs get equally many questions where the answers allow it, and each system comes first in half of its pair's.
    The sheet's name is a hash of the seed, so it does not tell the order. Raises ToolkitError if nothing can be shown.
    """
    entries = answered(evaluation)
    pairs = compared_pairs(evaluation, default)
    if not pairs:
        raise ToolkitError(
            f"no two of base, trained and {default} have answers, so there is nothing to compare",
            hint="ask them all: leave `evaluate.systems` empty, and run `toolkit evaluate`",
        )
    rng = random.Random(seed)
    different = {pair: differing(entries, pair) for pair in pairs}
    rows = {pair: {entry["row"] for entry in found} for pair, (found, _) in different.items()}
    shown: dict[Pair, list[int]] = {pair: [] for pair in pairs}
    order = [entry["row"] for entry in entries]
    rng.shuffle(order)
    for row in sorted(order, key=lambda row: sum(row in there for there in rows.values())):
        fitting = [pair for pair in pairs if row in rows[pair]]
        if fitting:
            shown[min(fitting, key=lambda pair: len(shown[pair]))].append(row)
    drawn = []
    for pair, chosen in shown.items():
        odd = rng.randrange(2)
        firsts = [pair[(index + odd) % 2] for index in range(len(chosen))]
        rng.shuffle(firsts)
        drawn += [(row, pair, first) for row, first in zip(chosen, firsts, strict=True)]
    if not drawn:
        raise ToolkitError(
            "all systems answer every question with the same text, so there is nothing to compare",
            hint="`toolkit evaluate` shows the answers; a model that learned nothing answers as its base does",
        )
    rng.shuffle(drawn)
    items = [
        KeyItem(item=number, row=row, a=pair[0], b=pair[1], first=first)
        for number, (row, pair, first) in enumerate(drawn, start=1)
    ]
    counts = [
        Identical(a=pair[0], b=pair[1], questions=len(found) + same, identical=same)
        for pair, (found, same) in different.items()
    ]
    # A spreadsheet would take hexadecimal digits alone, such as 12e345, for a number.
    name = "s" + hashlib.sha256(f"sheet {seed}".encode()).hexdigest()[:11]
    return SheetKey(run=run, sheet=name, seed=seed, answers=answers_hash(evaluation, pairs), items=items, pairs=counts)


def read_key(folder: RunFolder) -> SheetKey | None:
    """Read the key of the run's sheet; None if there is none. Raises ToolkitError for a damaged one."""
    try:
        return SheetKey.model_validate(parse_json(read_bounded(folder.review_key, LARGEST_JSON)))
    except FileNotFoundError:
        return None
    except ValidationError as exc:
        first = exc.errors()[0]
        reason = f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}"
    except ValueError as exc:
        reason = str(exc)
    raise ToolkitError(
        f"`{folder.review_key}` is damaged: {reason}",
        hint="restore it from a copy: votes on its sheet cannot be counted without it; "
        "to begin a new sheet, move it away and call `toolkit evaluate --sheet`",
    )


def key_for(folder: RunFolder, evaluation: dict[str, Any], default: str) -> SheetKey:
    """Return the key of the sheet of these answers: the one that is there, else a new one, which is written.

    A key of other answers is kept beside it under its sheet's name, so that its votes are not lost.
    """
    there = read_key(folder)
    wanted = [*compared_pairs(evaluation, default)]
    if there and there.of_pairs == wanted and there.answers == answers_hash(evaluation, wanted):
        return there
    fresh = draw_key(folder.name, evaluation, default, secrets.token_hex(16))
    if there:
        kept = folder.review_key.with_name(f"review-key-{there.sheet}.json")
        folder.review_key.replace(kept)
        warn(
            f"the earlier sheet {there.sheet} was of other answers or systems: its votes no longer count; its key is "
            f"now {kept}"
        )
    write_text(folder.review_key, fresh.model_dump_json(indent=1) + "\n")
    return fresh
