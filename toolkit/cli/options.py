"""What all verbs share on the command line: the group they belong to, their options, an example under each help."""

import functools
import os
from collections.abc import Callable
from typing import Any

import click

from toolkit import __version__
from toolkit.core import console

EXAMPLES = {
    "init": "toolkit init myproject",
    "doctor": "toolkit doctor -c examples/quickstart.toml",
    "prepare": "toolkit prepare --set data.source=questions.csv",
    "train": "toolkit train --set train.max_steps=100",
    "export": "toolkit export --adapter DIR --base DIR --quant Q4_K_M --output DIR",
    "validate": "toolkit validate --set validate.rows=20",
    "register": "toolkit register --set ollama.name=medassist",
    "modelfile": "toolkit modelfile > exports/medassist/Modelfile",
    "ask": 'toolkit ask "How to prevent Noonan syndrome?"',
    "run": "toolkit run -c examples/quickstart.toml",
    "status": "toolkit status --json",
}


def _options(writes: bool, config: bool = True) -> list[Callable[..., Any]]:
    shared = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, on failure too."),
        click.option("-q", "--quiet", is_flag=True, help="Only warnings and errors on stderr."),
    ]
    if config:
        shared = [
            click.option(
                "-c",
                "--config",
                "path",
                default="toolkit.toml",
                show_default=True,
                metavar="FILE",
                help="Settings file.",
            ),
            click.option(
                "--set",
                "overrides",
                multiple=True,
                metavar="SECTION.KEY=VALUE",
                help="Override one setting; repeatable.",
            ),
            click.option("--offline", is_flag=True, help="Forbid the network (an Ollama server excepted)."),
            *shared,
        ]
    if writes:
        shared += [
            click.option("--dry-run", is_flag=True, help="Say what would be done, and write nothing."),
            click.option("--force", is_flag=True, help="Do it even if it is fresh, and overwrite what differs."),
        ]
    return shared


def verb(*, writes: bool = False, config: bool = True) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a Click command with the options that verbs share, and its example under the help."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        @functools.wraps(function)
        def call(as_json: bool, quiet: bool, **options: Any) -> Any:
            console.configure(as_json=as_json, quiet=quiet)
            if options.pop("offline", False):
                os.environ["HF_HUB_OFFLINE"] = "1"
            return function(**options)

        name = function.__name__.rstrip("_")
        command: Any = call
        for option in reversed(_options(writes, config)):
            command = option(command)
        return group.command(name, epilog=f"\b\nExample:\n  {EXAMPLES[name]}")(command)

    return wrap


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="toolkit")
def group() -> None:
    """Fine-tune a model on questions and answers, and prove that what Ollama runs is what was trained.

    The stages in order: prepare, train, export, validate, register. `run` does those that are out of date.
    """
