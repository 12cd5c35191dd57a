"""Multiple choice, and other tasks of lm-eval: one number for each item and system."""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from toolkit.core.manifest import installed
from toolkit.evaluate.exam import exam_task
from toolkit.evaluate.journal import Journal, key_of
from toolkit.evaluate.systems import Asked
from toolkit.evaluate.tasks import ChoiceTask, open_tasks

Place = tuple[str, int]  # a task's name, and the number of the item from 0


@dataclass(frozen=True)
class ItemValue:
    """What one system reached in one item: with accuracy 1.0 for right, 0.0 for wrong."""

    task: str
    item: int
    value: float


@dataclass(frozen=True)
class ChoiceEntry:
    """One task with the numbers of all systems, item by item in the same order, so that pairs can be compared."""

    task: str
    title: str
    metric: str
    lower: bool
    values: dict[str, list[float]]


def load_choice(names: Sequence[str], exam: Path | None, items: int, folder: Path | None) -> list[ChoiceTask]:
    """Load the tasks and the exam, before any model: what is wrong with them is said at once.

    `items` limits each task, never the exam. Raises ToolkitError.
    """
    found = open_tasks(names, items, folder)
    return [*found, exam_task(exam)] if exam is not None else found


def items_of(tasks: Sequence[ChoiceTask]) -> int:
    """Count the items of tasks, as one system is asked them."""
    return sum(len(task.requests) for task in tasks)


def item_keys(key: str, tasks: Sequence[ChoiceTask], window: int) -> dict[Place, str]:
    """Return the journal's key of each item of a system: a text that is longer than the window is cut."""
    how = [window, installed(["lm-eval"])]
    return {
        (task.name, item): key_of(
            key, task.name, item, task.metric, how, [str((one.doc, one.args)) for one in requests]
        )
        for task in tasks
        for item, requests in enumerate(task.requests)
    }


def answer_items(
    asked: Asked, key: str, tasks: Sequence[ChoiceTask], journal: Journal, advance: Callable[[], object]
) -> tuple[dict[Place, float], float]:
    """Ask a system the items of all tasks that the journal does not have yet; return all values and seconds."""
    keys = item_keys(key, tasks, asked.window)
    before = [place for place, name in keys.items() if journal.get(name) is not None]
    started = time.monotonic()
    for one in ask_items(asked, tasks, before):
        now = time.monotonic()
        journal.put(keys[one.task, one.item], {"value": one.value, "seconds": round(now - started, 3)})
        started = now
        advance()
    values = {place: journal.get(name) for place, name in keys.items()}
    return {place: one["value"] for place, one in values.items()}, sum(one["seconds"] for one in values.values())


def ask_items(asked: Asked, tasks: Sequence[ChoiceTask], done: Collection[Place] = ()) -> Iterator[ItemValue]:
    """Ask a system all items but those that are `done`; yield each as soon as it is answered, in order."""
    if not tasks:
        return
    from toolkit.evaluate.lm import AskedLM

    lm = AskedLM(asked)
    for task in tasks:
        places = [place for place in range(len(task.requests)) if (task.name, place) not in done]
        wanted = [request for place in places for request in task.requests[place]]
        responses = _responses(lm, wanted)
        for place in places:
            found = [next(responses) for _ in task.requests[place]]
            yield ItemValue(task.name, place, task.value(place, found))


def _responses(lm: Any, requests: Sequence[Any]) -> Iterator[Any]:
    for kind, alike in groupby(requests, key=lambda request: request.request_type):
        yield from lm.responses(kind, [request.args for request in alike])


def entries(tasks: Sequence[ChoiceTask], values: Mapping[str, Mapping[Place, float]]) -> list[ChoiceEntry]:
    """Put the items' numbers together: `values` are each system's, by task and item; a system lacks all or none."""
    return [
        ChoiceEntry(
            task.name,
            task.title,
            task.metric,
            task.lower,
            {
                system: [found[task.name, item] for item in range(len(task.requests))]
                for system, found in values.items()
                if (task.name, 0) in found
            },
        )
        for task in tasks
    ]
