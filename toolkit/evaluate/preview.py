"""What an evaluation would ask, and about how long it takes; nothing is written."""

from collections.abc import Sequence
from typing import Any

from toolkit.core import console, hardware
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.evaluate_settings import EvaluateSettings
from toolkit.core.manifest import read_manifest
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import held_out, tasks_of, window_for
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.choice import item_keys, items_of
from toolkit.evaluate.evaluation import read_evaluation
from toolkit.evaluate.journal import read_journal
from toolkit.evaluate.memorised import TOKENS, Beginning, beginning_keys, read_beginnings
from toolkit.evaluate.systems import System
from toolkit.evaluate.tasks import ChoiceTask
from toolkit.evaluate.transformers_system import weights_of
from toolkit.model.base import Base

# Weights times tokens that are done in a second by one core, several answers at once: the machines of the benchmarks.
CORE = 12e9
GPU = 4e12
ITEMS = {"questions", "answer_tokens", "tasks", "task_items", "exam"}  # settings that decide what each system is asked
TASK_TOKENS = 60  # of an item that are new to the model: its answers to choose


def foreseen(config: Config, folder: RunFolder, base: Base, *, kept: bool, force: bool = False) -> dict[str, Any]:
    """Return systems, items, tokens at most, and seconds as far as they are known; raises ToolkitError as the run.

    What a former evaluation asked the same systems is not asked again, unless `force`.
    """
    settings = config.evaluate
    bench = Bench(config, folder, base, kept, read_manifest(folder).files())
    tasks = tasks_of(settings)
    rows, questions = held_out.read_questions(folder, bench.form, bench.tokenizer, settings.questions)
    items = items_of(tasks)
    _, beginnings = read_beginnings(folder, bench.form, bench.tokenizer.eos_text, settings.questions)
    given = sum(len(bench.tokenizer.prompt_ids(one.prompt)) for one in beginnings)
    read = sum(len(one.ids) for one in questions) + given + TASK_TOKENS * items
    written = len(questions) * settings.answer_tokens + len(beginnings) * TOKENS
    former, journal = _former(folder, settings), {} if force else read_journal(folder.evaluated)
    window = window_for(bench, questions, beginnings, tasks)
    systems: list[dict[str, Any]] = []
    for system in bench.systems:
        skipped = bench.skipped(system)
        keys = [] if skipped else _keys(bench, system, window, questions, beginnings, tasks)
        new = [name not in journal for name in keys]
        share = sum(new) / len(new) if new else 0.0
        seconds = former.get(system.name, _seconds(bench, system, read, written)) if not skipped else None
        systems.append(
            {
                "name": system.name,
                "skipped": skipped,
                "items": sum(new),
                "tokens": round(share * (read + written)),
                "seconds": None if seconds is None else round(share * seconds, 3),
            }
        )
    return {
        "rows": rows,
        "questions": len(questions),
        "choice_items": items,
        "items": sum(one["items"] for one in systems),
        "tokens": sum(one["tokens"] for one in systems),
        "systems": systems,
        "seconds": round(sum(one["seconds"] or 0.0 for one in systems), 3),
        "measured_before": bool(former),
    }


def _keys(
    bench: Bench,
    system: System,
    window: int,
    questions: Sequence[held_out.Question],
    beginnings: Sequence[Beginning],
    tasks: Sequence[ChoiceTask],
) -> list[str]:
    """Return the journal's keys of all that a system would be asked; those of a file that is not there are new."""
    there = system.path is None or system.path.is_file()
    key, room = (bench.key(system), bench.room(system, window)) if there else ("", window)
    scores, answers = held_out.question_keys(
        key, questions, bench.config.evaluate.answer_tokens, room, bench.form.stops
    )
    rest = beginning_keys(key, beginnings, bench.tokenizer, room, bench.form.stops)
    return [*scores, *answers, *filter(None, rest), *item_keys(key, tasks, room).values()]


def foreseen_table(found: dict[str, Any]) -> str:
    """Write what would be asked for people."""
    rows = [
        (one["name"], one["skipped"] or _asked(one["items"]), "" if one["seconds"] is None else _about(one["seconds"]))
        for one in found["systems"]
    ]
    asked = f"{found['questions']} of {found['rows']} held-out questions"
    if found["choice_items"]:
        asked += f", {found['choice_items']:,} multiple-choice items"
    basis = "as the last evaluation took" if found["measured_before"] else "a rough estimate"
    total = f"{found['items']:,} items, {found['tokens']:,} tokens at most, {_about(found['seconds'])} ({basis})"
    return f"{console.table(('system', 'what', 'takes'), rows, title=asked)}\n{total}"


def _asked(items: int) -> str:
    return f"would be asked {items:,} items" if items else "nothing new is asked"


def _about(seconds: float) -> str:
    return f"about {console.duration(seconds)}"


def _former(folder: RunFolder, settings: EvaluateSettings) -> dict[str, float]:
    """Return how long each system took in the last evaluation; nothing where that asked other items."""
    try:
        found = read_evaluation(folder)
    except ToolkitError:
        return {}
    asked = found.get("settings") or {}
    if {key: asked.get(key) for key in ITEMS} != settings.model_dump(mode="json", include=ITEMS):
        return {}
    return {one["name"]: one["seconds"] for one in found["systems"] or [] if one.get("seconds")}


def _seconds(bench: Bench, system: System, read: int, written: int) -> float | None:
    """Estimate a system's seconds from its number of weights and this machine's cores, or its GPU."""
    if system.path is not None and not system.path.is_file():
        return None
    weights, place = weights_of(bench.base.folder), bench.place
    on_gpu = place.device != "cpu" if not isinstance(place, str) else hardware.sees_gpu()
    speed = GPU if on_gpu else CORE * hardware.cores()
    return round(weights * (written + read / 4) / speed, 3)
