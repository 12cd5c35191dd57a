"""What an evaluation would ask, and about how long it takes; nothing is written."""

from typing import Any

from toolkit.core import console, hardware
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.evaluate_settings import EvaluateSettings
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import held_out, tasks_of
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.choice import items_of
from toolkit.evaluate.evaluation import read_evaluation
from toolkit.evaluate.memorised import TOKENS, read_beginnings
from toolkit.evaluate.systems import System
from toolkit.evaluate.transformers_system import weights_of
from toolkit.model.base import Base

# Weights times tokens that are done in a second by one core, several answers at once: the machines of the benchmarks.
CORE = 12e9
GPU = 4e12
ITEMS = {"questions", "answer_tokens", "tasks", "task_items", "exam"}  # settings that decide what each system is asked
TASK_TOKENS = 60  # of an item that are new to the model: its answers to choose


def foreseen(config: Config, folder: RunFolder, base: Base, *, kept: bool) -> dict[str, Any]:
    """Return systems, items, tokens at most, and seconds as far as they are known; raises ToolkitError as the run."""
    settings = config.evaluate
    bench = Bench(config, folder, base, kept)
    tasks = tasks_of(settings)
    rows, questions = held_out.read_questions(folder, bench.form, bench.tokenizer, settings.questions)
    items = items_of(tasks)
    _, beginnings = read_beginnings(folder, bench.form, bench.tokenizer.eos_text, settings.questions)
    given = sum(len(bench.tokenizer.prompt_ids(one.prompt)) for one in beginnings)
    read = sum(len(one.ids) for one in questions) + given + TASK_TOKENS * items
    written = len(questions) * settings.answer_tokens + len(beginnings) * TOKENS
    former = _former(folder, settings)
    systems: list[dict[str, Any]] = []
    for system in bench.systems:
        skipped = bench.skipped(system)
        seconds = former.get(system.name, _seconds(bench, system, read, written)) if not skipped else None
        systems.append({"name": system.name, "skipped": skipped, "seconds": seconds})
    asked = len([one for one in systems if not one["skipped"]])
    known = [one["seconds"] for one in systems if one["seconds"] is not None]
    return {
        "rows": rows,
        "questions": len(questions),
        "choice_items": items,
        "items": asked * (2 * len(questions) + len(beginnings) + items),
        "tokens": asked * (read + written),
        "systems": systems,
        "seconds": round(sum(known), 3),
        "measured_before": bool(former),
    }


def foreseen_table(found: dict[str, Any]) -> str:
    """Write what would be asked for people."""
    rows = [
        (one["name"], one["skipped"] or "would be asked", "" if one["seconds"] is None else _about(one["seconds"]))
        for one in found["systems"]
    ]
    asked = f"{found['questions']} of {found['rows']} held-out questions"
    if found["choice_items"]:
        asked += f", {found['choice_items']:,} multiple-choice items"
    basis = "as the last evaluation took" if found["measured_before"] else "a rough estimate"
    total = f"{found['items']:,} items, {found['tokens']:,} tokens at most, {_about(found['seconds'])} ({basis})"
    return f"{console.table(('system', 'what', 'takes'), rows, title=asked)}\n{total}"


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
