"""Which rows ask the same: the group of each record, all of whose rows stay in one split."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import replace

from toolkit.prepare.clean import Record, normalise


def with_groups(records: list[Record], default: str) -> list[Record]:
    """Name the group of each record by its instruction and its question together.

    A part that says nothing is left out: the `default` instruction, and a text that more than half of the rows share,
    such as "Answer in one line." as the input of every row. So the groups of plain questions are their questions.
    """
    instructions = Counter(record.instruction for record in records)
    questions = Counter(record.normalised for record in records)

    def common(count: int) -> bool:
        return 2 * count > len(records)

    named = []
    for record in records:
        if record.instruction == default or common(instructions[record.instruction]):
            named.append(record)
            continue
        asked = [] if common(questions[record.normalised]) else [record.first_question]
        named.append(replace(record, normalised=normalise("\n".join([record.instruction, *asked]))))
    return named


def tied(records: Iterable[Record]) -> dict[str, str]:
    """Return question → name of what stays together in one split: all that is tied by a question or by a group.

    Without groups it is the question itself. Else it is the group whose name comes first, numbers in their order: a
    patient who comes later rarely changes it.
    """
    above: dict[str, str] = {}  # of a question or a group, one that it is tied to; none above the name itself

    def name_of(one: str) -> str:
        while one in above:
            if above[one] in above:
                above[one] = above[above[one]]
            one = above[one]
        return one

    questions: dict[str, None] = {}
    for record in records:
        questions[record.normalised] = None
        if record.group:
            one, other = sorted((name_of(record.normalised), name_of(_GROUP + record.group)), key=_rank)
            if one != other:
                above[other] = one
    return {question: name_of(question) for question in questions}


_GROUP = "\n"  # before the name of a group: no question begins with it


def _rank(name: str) -> tuple[bool, int, str]:
    return not name.startswith(_GROUP), len(name), name


def reworded(train: list[Record], held_out: list[Record]) -> int:
    """Count the held-out rows whose question is in training too, under another instruction.

    The question is here whichever of the two columns has more different texts: the other one says how to answer it.
    """
    records = [*train, *held_out]
    instructions = {record.instruction for record in records}
    inputs = {normalise(record.first_question) for record in records}

    def asked(record: Record) -> str:
        return record.instruction if len(instructions) > len(inputs) else normalise(record.first_question)

    trained = {asked(record) for record in train}
    return sum(asked(record) in trained for record in held_out)


def question_shown(record: Record) -> str:
    """Return what a record asks, or a chat asks first, as a reader knows it from the file."""
    if record.normalised == normalise(record.first_question):
        return record.first_question
    return f"{record.instruction} {record.first_question}"
