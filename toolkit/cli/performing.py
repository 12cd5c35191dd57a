"""How a verb calls its run: settings, dry run, result, next step."""

import re
import shlex
from typing import TYPE_CHECKING, Any

import click

from toolkit import pipeline
from toolkit.core import console
from toolkit.core.learned import USUAL_RATE
from toolkit.core.network import is_offline
from toolkit.pipeline.usable import check_usable, ends_with_adapter

if TYPE_CHECKING:
    from toolkit.pipeline.run import Run


def load_run(path: str, overrides: tuple[str, ...]) -> "Run":
    """Return the run of a settings file with its overrides; it speaks on this terminal."""
    from dataclasses import replace

    from toolkit.pipeline.run import Run

    return replace(Run.load(path, *overrides, progress="terminal"), command=command_text)


def command_text(name: str, tail: str = "") -> str:
    """Write the command for a next step, with the settings that this call was given."""
    given = click.get_current_context().params
    words = ["toolkit", name]
    if given["path"] != "toolkit.toml":
        words += ["-c", given["path"]]
    for override in given["overrides"]:
        words += ["--set", override]
    if given["offline"]:
        words.append("--offline")
    return shlex.join(words) + tail


def with_settings(hint: str) -> str:
    """Give the commands in a hint the settings of this call, so that they can be typed as they are."""
    given = click.get_current_context().params
    if "path" not in given:
        return hint

    def whole(found: re.Match[str]) -> str:
        name, tail = found.groups()
        has_them = any(option in tail for option in (" -c ", " --set ", " --offline"))
        return found[0] if has_them else f"`{command_text(name, tail)}`"

    verbs = "|".join([*pipeline.STAGES, *pipeline.BESIDE, "doctor", "run", "status", "report"])
    return re.sub(rf"`toolkit ({verbs})((?: [^`]*)?)`", whole, hint)


def mending_command(run: "Run") -> str:
    """Write the command after a training that a warning calls doubtful: with the usual rate where it had another."""
    if run.config.train.learning_rate == USUAL_RATE:
        return command_text("status")
    return command_text("train", f" --set train.learning_rate={USUAL_RATE:g}")


def perform_one(name: str, path: str, overrides: tuple[str, ...], dry_run: bool, force: bool, **options: Any) -> None:
    """Perform one stage, print its result, and name the next step; `options` are those of `Run.perform`."""
    from toolkit.cli import summary

    run = load_run(path, overrides)
    if dry_run:
        # What ends before training, or with it, may be for the adapter alone.
        alone = list(pipeline.STAGES).index(name) <= list(pipeline.STAGES).index("train")
        check_usable(run.config, offline=is_offline(), adapter_alone=alone)
        console.result(*summary.preview([name], run.config, run.folder))
        return
    done = run.perform(name, force=force, **options)
    console.result(*summary.of(done, run.folder))
    following = [*pipeline.STAGES, ""][[*pipeline.STAGES].index(name) + 1]
    model = run.config.ollama.name or run.config.run.name
    if done.warning:
        console.next_step(mending_command(run))
    elif name == "train" and ends_with_adapter(run.config, offline=is_offline()):
        console.next_step(command_text("status"))
    else:
        console.next_step(command_text(following) if following else f'ollama run {model} "…"')


def perform_all(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Perform all stages that are out of date, in order, and print what was done."""
    from toolkit.cli import summary

    run = load_run(path, overrides)
    if dry_run:
        check_usable(run.config, offline=is_offline())
        every = list(pipeline.STAGES)
        alone = ends_with_adapter(run.config, offline=is_offline())
        stages = every[: every.index("train") + 1] if alone else every
        console.result(*summary.preview(stages, run.config, run.folder))
        return
    finished = run.run(force=force)
    console.result(*summary.of_run(finished))
    if finished.registered and all(done.fresh for done in finished.stages):
        console.next_step(command_text("ask", ' "…"'))
        return
    if any(done.warning for done in finished.stages):
        console.next_step(mending_command(run))
    elif any(done.stage == "export" for done in finished.stages):
        console.next_step(command_text("ask", ' "…"'))
    else:
        console.next_step(command_text("status"))
