"""How a verb performs stages: settings, dry run, lock, the doctor's look before hours are spent, result, next step."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import pipeline
from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.learned import USUAL_RATE

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.run_folder import RunFolder


def load_run(path: str, overrides: tuple[str, ...]) -> "tuple[Config, RunFolder]":
    """Read the settings file with its overrides, and return the settings and their run folder."""
    from toolkit.core.config_file import load_config
    from toolkit.core.run_folder import folder_of, heal

    config = load_config(Path(path), overrides)
    folder = folder_of(config)
    heal(folder)
    return config, folder


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


def mending_command(config: "Config") -> str:
    """Write the command after a training that a warning calls doubtful: with the usual rate where it had another."""
    if config.train.learning_rate == USUAL_RATE:
        return command_text("status")
    return command_text("train", f" --set train.learning_rate={USUAL_RATE:g}")


def is_offline() -> bool:
    """Tell whether this call forbids the network."""
    return os.environ.get("HF_HUB_OFFLINE") == "1"


def perform_one(
    name: str,
    path: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    *,
    gpus: int = 1,
    replace: tuple[str, ...] = (),
) -> None:
    """Perform one stage, print its result, and name the next step."""
    from toolkit.cli import summary
    from toolkit.core.run_folder import locked

    config, folder = load_run(path, overrides)
    if dry_run:
        console.result(*summary.preview([name], config, folder))
        return
    with locked(folder):
        console.log_to(folder.log)

        def look() -> None:
            if name == "train":  # hours may follow
                _look_first(config, folder, (name,))

        options: dict[str, Any] = {"gpus": gpus, "replace": replace}
        done = pipeline.perform(name, config, folder, force=force, offline=is_offline(), before=look, **options)
    if done.fresh:
        console.info(f"{name}: fresh, skipped (--force does it again)")
    if done.warning:
        console.warn(done.warning)
    console.result(*summary.of(done, folder))
    following = [*pipeline.STAGES, ""][[*pipeline.STAGES].index(name) + 1]
    model = config.ollama.name or config.run.name
    if done.warning:
        console.next_step(mending_command(config))
    else:
        console.next_step(command_text(following) if following else f'ollama run {model} "…"')


def perform_all(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Perform all stages that are out of date, in order, and print what was done."""
    from toolkit.cli import summary
    from toolkit.core.run_folder import locked

    config, folder = load_run(path, overrides)
    if dry_run:
        console.result(*summary.preview(list(pipeline.STAGES), config, folder))
        return
    with locked(folder):
        console.log_to(folder.log)
        stale = {stage: why for stage, why in pipeline.state(config, folder).items() if why or force}
        if not stale:
            pipeline.keep_settings(config, folder)
            console.result({"stages": {}, "folder": str(folder.path)}, f"all stages are fresh: {folder.path}")
            console.next_step(command_text("ask", ' "…"'))
            return
        # Without a server all but registering is done, so its absence must not stop the run here.
        _look_first(config, folder, tuple(stage for stage in stale if stage != "register"))
        finished = []
        for stage in pipeline.STAGES:
            if stage == "register" and not _server_answers(config):
                break
            done = pipeline.perform(stage, config, folder, force=force, offline=is_offline())
            if done.fresh:
                console.info(f"{stage}: fresh, skipped")
            else:
                console.info(summary.of(done, folder)[1])
            if done.warning:
                console.warn(done.warning)
            finished.append(done)
    console.result(*summary.of_run(finished, folder))
    doubtful = any(done.warning for done in finished)
    console.next_step(mending_command(config) if doubtful else command_text("ask", ' "…"'))


def _look_first(config: "Config", folder: "RunFolder", stages: tuple[str, ...]) -> None:
    """Let doctor look before hours are spent; a check that fails ends the run."""
    if not stages:
        return
    from toolkit.doctor import doctor as examine

    checks = examine(config, folder, offline=is_offline(), stages=pipeline.records(stages))
    failed = [check for check in checks if check.ok is False]
    if failed:
        listed = "\n".join(f"  {check.name}: {check.found}" for check in failed)
        raise ToolkitError(
            f"this machine cannot do the configured run:\n{listed}", hint=failed[0].fix, exit_code=MISSING
        )


def _server_answers(config: "Config") -> bool:
    """Say whether there is a server to register with; a run without one does all the rest and succeeds."""
    from toolkit.ollama import server
    from toolkit.ollama.address import server_address

    again = f"then `{command_text('register')}`"
    try:
        url = server_address(config.ollama)
    except ToolkitError as exc:
        console.warn(f"{exc.message}, so the model is not registered; {exc.hint}, {again}")
        return False
    if server.version(config.ollama) is not None:
        return True
    console.warn(
        f"no Ollama server answers at {url}, so the model is not registered; start one with `ollama serve`, {again}"
    )
    return False
