"""Tasks of lm-evaluation-harness: their names, and how one becomes items with one number each."""

import difflib
import functools
import importlib.util
import math
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.evaluate.guards import SEEDS, no_programs, own_data, quiet, seeded
from toolkit.evaluate.measures import check_installed

TITLES = {
    "medqa_4options": "MedQA, questions of the US medical licence",
    "medmcqa": "MedMCQA, questions of Indian medical entrance exams",
    "pubmedqa": "PubMedQA, yes, no or maybe by an abstract",
    "arc_easy": "ARC easy, school science",
    "hellaswag": "HellaSwag, how an everyday text goes on",
}
_KEY = r"^[\"']?(?:task|group|tag)[\"']?:[ \t]*"
_NAMED = re.compile(_KEY + r"([^\s#\[{][^#\n]*)", re.MULTILINE)
_LISTED = re.compile(_KEY + r"(?:#.*)?\n((?:[ \t]*-[ \t]*[^\s:{]+[ \t]*\n)+)", re.MULTILINE)
_INLINE = re.compile(_KEY + r"\[([^\]]*)\]", re.MULTILINE)


@dataclass(frozen=True)
class ChoiceTask:
    """A task to ask: `metric` gives each item one number, and `lower` says that less of it is better.

    `task` is lm-eval's object, `requests` its requests for each item, in order.
    """

    name: str
    title: str
    metric: str
    lower: bool
    task: Any
    requests: list[list[Any]]

    def value(self, item: int, responses: Sequence[Any]) -> float:
        """Return the number of an item by a system's responses to its requests."""
        asked = [
            type(request)(**{**_fields(request), "resps": [response] * (request.repeats or 1), "filtered_resps": {}})
            for request, response in zip(self.requests[item], responses, strict=True)
        ]
        with quiet(), no_programs():
            first = self.task._filters[0]
            first.apply(asked)
            found = self.task.process_results(asked[0].doc, [request.filtered_resps[first.name] for request in asked])
        if self.metric == BITS:
            total, size = found["bits_per_byte"]
            return -float(total) / (max(1, int(size)) * math.log(2))
        return float(found[self.metric])


BITS = "bits per byte"


def _fields(request: Any) -> dict[str, Any]:
    return {key: getattr(request, key) for key in ("request_type", "doc", "arguments", "idx", "metadata")}


def open_tasks(names: Sequence[str], items: int, folder: Path | None) -> list[ChoiceTask]:
    """Load tasks with their data and requests; `items` is how many of each, 0 for all. A group's tasks stand for it.

    No program is fetched or run. Raises ToolkitError for a name that does not exist, and for what cannot be asked here.
    """
    if not names:
        return []
    check_installed(("lm_eval",))
    named = task_folders()
    for name in names:
        if name not in named:
            raise ToolkitError(
                f"lm-evaluation-harness has no task `{name}`{_did_you_mean(name, named)}",
                hint="`lm-eval ls tasks` lists them; correct `evaluate.tasks`",
                exit_code=USAGE,
            )
    found: dict[str, ChoiceTask] = {}
    for name in names:
        for inner, task in _load(name, named, folder).items():
            found.setdefault(inner, make_task(inner, task, items))
    return list(found.values())


@functools.cache
def task_folders() -> dict[str, set[Path]]:
    """Return each name of a task, group or tag, with the folders in lm-eval that define it.

    lm-eval itself would read all 14,000 files as YAML, which takes ten seconds; this looks at their lines.
    """
    spec = importlib.util.find_spec("lm_eval")
    root = Path(str(spec.submodule_search_locations[0] if spec and spec.submodule_search_locations else "")) / "tasks"
    found: dict[str, set[Path]] = {}
    for where, _, files in os.walk(root):
        for file in files:
            path = Path(where, file)
            if "yaml" in file or not path.suffix:  # what tasks include need not be named so
                text = path.read_text(encoding="utf-8", errors="replace")
                names = _NAMED.findall(text)
                names += [
                    line.strip().removeprefix("-") for block in _LISTED.findall(text) for line in block.splitlines()
                ]
                names += [name for block in _INLINE.findall(text) for name in block.split(",")]
                for name in names:
                    found.setdefault(name.strip(" \t\"'"), set()).add(root / path.relative_to(root).parts[0])
    found.pop("null", None)
    return found


def _did_you_mean(name: str, known: Iterable[str]) -> str:
    lower = {one.lower(): one for one in known}
    close = sorted((one for one in lower if one.startswith(name.lower())), key=len)[:1]
    close = close or difflib.get_close_matches(name.lower(), lower, n=1, cutoff=0.6)
    return f'; did you mean "{lower[close[0]]}"?' if close else ""


def _load(name: str, named: dict[str, set[Path]], folder: Path | None) -> dict[str, Any]:
    """Return the tasks that a name stands for, as lm-eval makes them."""
    with quiet(), no_programs(), own_data(folder), seeded():
        from lm_eval.tasks import TaskManager

        try:
            folders, manager = set(named[name]), None
            while True:  # a group may name tasks of other folders
                manager = TaskManager(include_defaults=False, include_path=sorted(map(str, folders)))
                more = set[Path]().union(*(named.get(one, set()) for one in _members(manager, name)))
                if more <= folders:
                    break
                folders |= more
            return dict(manager.load(name)["tasks"])
        except ToolkitError:
            raise
        except ImportError as exc:
            raise ToolkitError(
                f"task `{name}` needs a library that is not installed: {exc.name or exc}",
                hint=f"`pip install {exc.name}`, or leave the task out" if exc.name else "leave the task out",
                exit_code=MISSING,
            ) from None
        except Exception as exc:  # 14,000 tasks have code of their own
            said = " ".join(str(exc).split())[:300]
            raise ToolkitError(
                f"task `{name}` cannot be made ready: {type(exc).__name__}: {said}",
                hint="leave it out of `evaluate.tasks`; if its data lie in `evaluate.task_folder`, check their columns",
                exit_code=USAGE,
            ) from None


def _members(manager: Any, name: str) -> set[str]:
    """Return all names that a group or tag leads to."""
    found: set[str] = set()
    waiting = [name]
    while waiting:
        entry = manager.task_index.get(waiting.pop())
        listed = (entry.cfg or {}).get("task") if entry is not None else None
        children = [] if entry is None else list(entry.tags)
        for child in listed if isinstance(listed, list) else []:
            one = child.get("task", child.get("group")) if isinstance(child, dict) else child
            children += one if isinstance(one, list) else [one]
        new = {str(child) for child in children if child} - found
        found |= new
        waiting += new
    return found


def make_task(name: str, task: Any, items: int) -> ChoiceTask:
    """Make the requests of lm-eval's task, alike for all systems; raises ToolkitError if it cannot be asked."""
    if getattr(task, "UNSAFE_CODE", False):
        _refuse(name, "runs programs that a model wrote")
    if getattr(task, "MULTIMODAL", False):
        _refuse(name, "shows pictures or plays sounds")
    metric, lower = _metric(name, task)
    with quiet(), no_programs(), seeded():
        if task.get_config("num_fewshot") is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEEDS["fewshot"])
        try:
            task.build_all_requests(limit=items or None)
        except Exception as exc:  # the task's own code meets data that it was not written for
            raise ToolkitError(
                f"task `{name}` cannot make its questions: {type(exc).__name__}: {' '.join(str(exc).split())[:300]}",
                hint="check the columns of its data, or leave it out of `evaluate.tasks`",
                exit_code=USAGE,
            ) from None
    requests: dict[int, list[Any]] = {}
    for request in task.instances:
        requests.setdefault(request.doc_id, []).append(request)
    return ChoiceTask(name, TITLES.get(name, name), metric, lower, task, list(requests.values()))


def _metric(name: str, task: Any) -> tuple[str, bool]:
    """Choose the metric that gives each item a number, and whether less of it is better.

    It is lm-eval's first that is a mean over items; but acc_norm, where a task has it and its choices are whole texts:
    their log-probabilities are then divided by their lengths. Of whole texts it is bits per byte, each text alone.
    """
    means = [key for key, how in task.aggregation().items() if getattr(how, "__name__", "") in ("mean", "nanmean")]
    if "acc_norm" in means and not isinstance(task.get_config("doc_to_choice"), list):
        means = ["acc_norm"]
    if means:
        return means[0], not task.higher_is_better().get(means[0], True)
    if "bits_per_byte" in task.aggregation():
        return BITS, True
    _refuse(name, f"has no number for each item, only for all ({', '.join(map(str, task.aggregation()))})")


def _refuse(name: str, why: str) -> NoReturn:
    raise ToolkitError(
        f"task `{name}` {why}: it is not asked here", hint="leave it out of `evaluate.tasks`", exit_code=USAGE
    )
