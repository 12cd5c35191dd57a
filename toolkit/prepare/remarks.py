"""What prepare warns of once the records are in their splits: answers that are cut, and splits that say little."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

from toolkit.core.config import Config
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.clean import Record
from toolkit.prepare.division import Division
from toolkit.prepare.fit import fitting_length
from toolkit.prepare.groups import tied
from toolkit.prepare.split import Splits

SHARE = 0.05  # of the answers that are cut, from which on it is a warning
_NO_END = ", and training does not see them end"
FEW = 3  # held-out questions whose figures say something


@dataclass
class Tally:
    """What is counted of the records that are kept, while they are written."""

    is_control_like: Callable[[Record], bool]
    control_like: int = 0
    rows: int = 0
    truncated: int = 0
    instruction_as_question: int = 0
    chats: int = 0
    turns: int = 0
    most_turns: int = 0
    single: int = 0  # chats of which one turn is left
    shortened: int = 0
    left_out: int = 0

    def each(self, records: Iterable[Record]) -> Iterator[Record]:
        """Yield the records, and count them."""
        for record in records:
            self.rows += 1
            self.control_like += self.is_control_like(record)
            self.truncated += record.truncated
            self.instruction_as_question += record.instruction_as_question
            if record.history:
                turns = len(record.history) + 1
                self.chats += 1
                self.turns += turns
                self.most_turns = max(self.most_turns, turns)
            if record.left_out:
                self.single += not record.history
                self.shortened += 1
                self.left_out += record.left_out
            yield record


def cut_records(tally: Tally, divided: Division, config: Config) -> Iterator[str]:
    """Warn of answers that are cut, and chats that lose their last turns, from 5 % on; with lengths that would fit."""
    limit = config.train.max_length
    for count, whole, what, more in (
        (tally.truncated, tally.rows + len(divided.too_long), "answers ({}) are cut", _NO_END),
        (tally.shortened, tally.chats + tally.single, "chats ({}) lose their last turns", ""),
    ):
        if not count or count < SHARE * whole:
            continue
        lost = f"{count:,} of {whole:,} {what.format(f'{count / whole:.0%}')} at train.max_length = {limit}{more}"
        most, every = (fitting_length(chain(divided.records, divided.too_long), share, limit) for share in (0.9, 1.0))
        fits = f"{every}` fits all of them" if most in (limit, every) else f"{most}` fits 90 % of them, {every} all"
        yield f"{lost}; `--set train.max_length={fits}"


def chat_figures(tally: Tally, unanswered: int) -> dict[str, int]:
    """Count the chats that are kept, their turns, and what of them is left out; empty where there are no chats."""
    figures = {
        "chats": tally.chats,
        "turns": tally.turns,
        "most_turns": tally.most_turns,
        "shortened_chats": tally.shortened,
        "turns_left_out": tally.left_out,
        "unanswered": unanswered,
    }
    return figures if any(figures.values()) else {}


def few_questions(asked: Mapping[str, Sequence[int]]) -> str:
    """Warn of held-out splits with so few questions that their figures say little; "" if there are enough."""
    few = []
    for name in ("val", "test"):
        questions = len(set(asked[name]))
        if 0 < questions < FEW:
            few.append(f"{name} holds {_counted(questions, 'question')} ({_counted(len(asked[name]), 'row')})")
    return f"{' and '.join(few)}: figures from so few say little about other questions" if few else ""


def reworded_questions(figures: dict[str, Any], splits: Splits) -> str:
    """Warn of held-out questions that training sees under another instruction; "" if there are none."""
    if not figures["reworded_questions"] or figures["leaked_questions"]:
        return ""
    held_out = len(splits["val"]) + len(splits["test"])
    return (
        f"{figures['reworded_questions']} of {held_out} held-out rows share their question with training rows, under "
        "another instruction: their figures may be too good"
    )


def groups_found(records: Sequence[Record], settings: DataSettings) -> str:
    """Say how many groups `data.group_column` gives, and how many rows have none; "" without it."""
    if not settings.group_column:
        return ""
    groups = Counter(record.group for record in records)
    without = groups.pop("", 0)
    none = f"; {_counted(without, 'row')} without one are grouped by question alone" if without else ""
    return f"{_counted(len(groups), 'group')} by `{settings.group_column}`, each in one split{none}"


def groups_tied(records: Sequence[Record]) -> str:
    """Warn of groups that questions of several of them tie to more than half of the rows; "" if there are none."""
    together = tied(records)
    rows = Counter(together[record.normalised] for record in records)
    name, most = max(rows.items(), key=lambda one: one[1])
    groups = {record.group for record in records if record.group and together[record.normalised] == name}
    if len(groups) < 2 or 2 * most <= len(records):
        return ""
    return (
        f"{len(groups):,} groups, {most:,} of {len(records):,} rows, stay in one split, because they ask the same "
        "questions: the splits may be far from the sizes that you set"
    )


def _counted(count: int, word: str) -> str:
    return f"{count:,} {word}" + ("" if count == 1 else "s")
