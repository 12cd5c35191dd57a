"""Which rows ask the same: the group of each record, all of whose rows stay in one split."""

from array import array
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import chain

from toolkit.core.spool import Spool
from toolkit.prepare.clean import Record, normalise


def with_groups(records: Sequence[Record], default: str) -> Sequence[Record]:
    """Name the group of each record by its instruction and its question together.

    A part that says nothing is left out: the `default` instruction, and a text that more than half of the rows share,
    such as "Answer in one line." as the input of every row. So the groups of plain questions are their questions.
    """
    if all(record.instruction == default for record in records):
        return records
    instruction = _of_most(lambda: (record.instruction for record in records))
    question = _of_most(lambda: (record.normalised for record in records))

    def named(record: Record) -> Record:
        if record.instruction in (default, instruction):
            return record
        asked = [] if record.normalised == question else [record.first_question]
        return replace(record, normalised=normalise("\n".join([record.instruction, *asked])))

    return Spool(map(named, records))


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


def _of_most(texts: Callable[[], Iterable[str]]) -> str | None:
    """Return the text that more than half of all are, if one is: found by the vote of Boyer and Moore, then counted."""
    likely, votes, total = None, 0, 0
    for text in texts():
        likely, total = text if not votes else likely, total + 1
        votes += 1 if text == likely else -1
    return likely if 2 * sum(text == likely for text in texts()) > total else None


def reworded(splits: Mapping[str, Sequence[Record]]) -> int:
    """Count the held-out rows whose question is in training too, under another instruction.

    The question is here whichever of the two columns has more different texts: the other one says how to answer it.
    """
    instructions, inputs = array("q"), array("q")  # hashes: the texts would fill the memory
    for record in chain(splits["train"], splits["val"], splits["test"]):
        instructions.append(hash(record.instruction))
        inputs.append(hash(normalise(record.first_question)))
    asked = instructions if len(set(instructions)) > len(set(inputs)) else inputs
    train = len(splits["train"])
    trained = {*asked[:train]}
    return sum(one in trained for one in asked[train:])


def question_shown(record: Record) -> str:
    """Return what a record asks, or a chat asks first, as a reader knows it from the file."""
    if record.normalised == normalise(record.first_question):
        return record.first_question
    return f"{record.instruction} {record.first_question}"
