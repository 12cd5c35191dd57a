"""Evaluation: what the base, the trained model and each GGUF answer, side by side, with intervals."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.evaluate_settings import BASE, TRAINED, EvaluateSettings
from toolkit.core.manifest import Manifest, Outcome, installed
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import held_out
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.choice import ChoiceEntry, Place, answer_items, entries, items_of, load_choice
from toolkit.evaluate.evaluation import VERSION, judge_figures, read_evaluation, write_evaluation
from toolkit.evaluate.journal import journal
from toolkit.evaluate.judge import JUDGE, judge_or_warn
from toolkit.evaluate.measures import check_installed
from toolkit.evaluate.memorised import Beginning, continue_rows, memorised, read_beginnings, room_for
from toolkit.evaluate.statistics import compare, correct, mean_of
from toolkit.evaluate.systems import System
from toolkit.evaluate.tasks import ChoiceTask
from toolkit.evaluate.votes import kept_votes
from toolkit.model.base import Base

__all__ = ["evaluate", "pairs_of"]

TASK_WINDOW = 2048  # tokens of a task's text with one answer to choose; a longer one loses its beginning
LIBRARIES = ("torch", "transformers", "peft", "llama-cpp-python", "lm-eval", "sacrebleu", "rouge-score", "scipy",
             "py3langid")  # fmt: skip


def pairs_of(config: Config, names: Sequence[str]) -> list[tuple[str, str]]:
    """Return which systems are compared: base and trained, trained and each GGUF, base and the default GGUF."""
    files = [name for name in names if name not in (BASE, TRAINED)]
    wanted = [(BASE, TRAINED), *((TRAINED, name) for name in files), (BASE, config.export.default)]
    return [(a, b) for a, b in wanted if a in names and b in names]


def evaluate(
    config: Config, folder: RunFolder, base: Base, manifest: Manifest, *, kept: bool = True, force: bool = False
) -> Outcome:
    """Ask all systems, compare them, and write `evaluation.json`.

    `base` is the one that was merged into; `kept` is False where its weights are not on this machine, and then neither
    it nor the trained model is asked. What a former evaluation asked the same systems is not asked again, unless
    `force`. Raises ToolkitError if a system or a task cannot be loaded: what the last evaluation found stays as it is.
    """
    check_installed()
    settings = config.evaluate
    tasks = tasks_of(settings)
    if settings.judge:
        from toolkit.evaluate.judge_model import find_judge

        find_judge(config)  # now: it is asked last
    bench = Bench(config, folder, base, kept, manifest.files())
    rows, questions = held_out.read_questions(folder, bench.form, bench.tokenizer, settings.questions)
    skipped = {system.name: bench.skipped(system) for system in bench.systems}
    present = [system for system in bench.systems if not skipped[system.name]]
    for name, why in skipped.items():
        if why:
            console.warn(f"{name} is not asked: {why}")
    if not present:
        raise ToolkitError("no system can be asked on this machine", hint="name GGUF files in `evaluate.systems`")
    long, beginnings = read_beginnings(folder, bench.form, bench.tokenizer.eos_text, settings.questions)
    window = window_for(bench, questions, beginnings, tasks)
    found: dict[str, held_out.Found] = {}
    values: dict[str, dict[Place, float]] = {}
    words: dict[str, list[int | None]] = {}
    seconds, devices = {}, {}
    try:
        with journal(folder.evaluated, fresh=force) as done:
            items = 2 * len(questions) + len(beginnings) + items_of(tasks)  # of each system
            if done.values:
                console.info(
                    f"an earlier evaluation left {len(done.values):,} results; those of the same questions and "
                    "settings are used again (--force starts over)"
                )
            with console.progress("evaluate", items * len(present), "items") as bar:
                for number, system in enumerate(present, 1):
                    bar.text = f"{system.name} ({number} of {len(present)})"
                    with bench.opened(system, window) as asked:
                        key, devices[system.name] = bench.key(system), bench.device(system)
                        found[system.name] = held_out.ask(
                            asked, key, questions, settings.answer_tokens, bench.form.stops, done, bar.advance
                        )
                        words[system.name], took = continue_rows(
                            asked, key, beginnings, bench.form.stops, done, bar.advance
                        )
                        values[system.name], spent = answer_items(asked, key, tasks, done, bar.advance)
                        seconds[system.name] = found[system.name].seconds + took + spent
                    bar.skip(number * items - bar.done)  # what was taken over
            bench.close()
            pairs = pairs_of(config, [*found])
            evaluation = {
                "version": VERSION,
                "run": folder.name,
                "seconds": round(sum(seconds.values()), 2),
                "versions": installed(LIBRARIES),
                "settings": settings.model_dump(mode="json"),
                "systems": [
                    _described(bench, system, skipped[system.name], devices, seconds, found) for system in bench.systems
                ],
                "held_out": held_out.measures_of(folder, rows, questions, settings.answer_tokens, found, pairs),
                "memorised": memorised(long, beginnings, words),
                "choice": _choices(tasks, values, pairs),
                "comparisons_made": 0,
                "votes": None,
                "judge": None,
            }
            _finish(evaluation, folder)
            if settings.judge:
                evaluation["judge"] = judge_or_warn(config, evaluation, done)
            write_evaluation(folder, evaluation)
            done.keep([*bench.keys, JUDGE])
    finally:
        bench.close()
    return Outcome([folder.evaluation], figures_of(evaluation), _warning(evaluation))


def window_for(
    bench: Bench, questions: Sequence[held_out.Question], beginnings: Sequence[Beginning], tasks: Sequence[ChoiceTask]
) -> int:
    """Return the tokens of the longest text that a system is asked or answers."""
    return max(
        held_out.room(questions, bench.config.evaluate.answer_tokens),
        room_for(beginnings, bench.tokenizer),
        TASK_WINDOW if tasks else 0,
    )


def tasks_of(settings: EvaluateSettings) -> list[ChoiceTask]:
    """Load the tasks and the exam that the settings name; raises ToolkitError for one that is wrong."""
    exam = Path(settings.exam).expanduser() if settings.exam else None
    data = Path(settings.task_folder).expanduser() if settings.task_folder else None
    return load_choice(settings.tasks, exam, settings.task_items, data)


def _described(
    bench: Bench, system: System, skipped: str, devices: dict[str, str], seconds: dict[str, float], found: Any
) -> dict[str, Any]:
    asked = found.get(system.name)
    return {
        "name": system.name,
        "kind": system.kind,
        **bench.describe(system),
        "device": devices.get(system.name),
        "skipped": skipped,
        "seconds": round(seconds[system.name], 2) if asked else None,
        "tokens": sum(answer.tokens for answer in asked.answers) if asked else None,
    }


def _choices(
    tasks: Sequence[ChoiceTask], values: dict[str, dict[Place, float]], pairs: Sequence[tuple[str, str]]
) -> list[dict[str, Any]]:
    return [_choice(entry, pairs) for entry in entries(tasks, values)]


def _choice(entry: ChoiceEntry, pairs: Sequence[tuple[str, str]]) -> dict[str, Any]:
    there = [(a, b) for a, b in pairs if a in entry.values and b in entry.values]
    return {
        "task": entry.task,
        "title": entry.title,
        "items": max(map(len, entry.values.values()), default=0),
        "metric": entry.metric,
        "systems": {name: mean_of(values, share=not entry.lower) for name, values in entry.values.items()},
        "comparisons": [
            compare(entry.task, a, b, entry.values[a], entry.values[b], less=entry.lower) for a, b in there
        ],
    }


def _finish(evaluation: dict[str, Any], folder: RunFolder) -> None:
    """Correct all comparisons together, and take over the votes on the same answers."""
    every = [*evaluation["held_out"]["comparisons"], *(one for e in evaluation["choice"] for one in e["comparisons"])]
    correct(every)
    for one in every:
        del one["less_is_better"]
    evaluation["comparisons_made"] = len(every)
    try:
        former = read_evaluation(folder)
    except ToolkitError:  # there is none, or one of another version
        return
    evaluation["votes"] = kept_votes(former, evaluation)
    if former["votes"] and evaluation["votes"] is None:
        console.warn(
            "the answers that clinicians compared are not all in this evaluation: the votes of clinicians on the "
            "earlier ones no longer count"
        )


def figures_of(evaluation: dict[str, Any]) -> dict[str, Any]:
    """Return what the manifest keeps: all but the answers and the votes."""
    asked = {key: value for key, value in evaluation["held_out"].items() if key != "answers"}
    kept = ("seconds", "systems", "memorised", "choice", "comparisons_made")
    return {"held_out": asked, **{key: evaluation[key] for key in kept}, "judge": judge_figures(evaluation["judge"])}


def _warning(evaluation: dict[str, Any]) -> str:
    """Say that the trained model is worse than its base, if it is."""
    for one in evaluation["held_out"]["comparisons"]:
        if (one["measure"], one["a"], one["b"], one["verdict"]) == ("nll", BASE, TRAINED, "worse"):
            return (
                "the trained model's loss on the reference answers is higher than its base's, by "
                f"{one['difference']:.3f} nats per token"
            )
    return ""
