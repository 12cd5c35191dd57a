"""What all verbs share: the command group, common options, and an example in each help."""

import functools
from collections.abc import Callable
from typing import Any

import click

from toolkit import __version__, pipeline
from toolkit.cli.performing import perform_one, with_settings
from toolkit.core import console, network
from toolkit.core.errors import ToolkitError

# For the verbs that are not stages; the pipeline's table holds those of the stages.
EXAMPLES = {
    "init": "toolkit init myproject",
    "doctor": "toolkit doctor -c examples/quickstart.toml",
    "modelfile": "toolkit modelfile > exports/medassist/Modelfile",
    "ask": 'toolkit ask "How to prevent Noonan syndrome?"',
    "run": "toolkit run -c examples/quickstart.toml",
    "status": "toolkit status --json",
    "report": "toolkit report --open",
}


class Verb(click.Command):
    """A command with an example under its help."""

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the example."""
        name, known = str(self.name), {**pipeline.STAGES, **pipeline.BESIDE}
        with formatter.section("Example"):
            formatter.write_text(known[name][1] if name in known else EXAMPLES[name])


class Verbs(click.Group):
    """The verbs, in which each stage of the pipeline's table has one, with or without its own options."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all verbs."""
        return sorted({*super().list_commands(ctx), *pipeline.STAGES})

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a verb; a stage without its own options gets one here."""
        found = super().get_command(ctx, cmd_name)
        if found is None and cmd_name in pipeline.STAGES:
            found = stage_verb(cmd_name)
        return found


def _options(writes: bool, config: bool = True) -> list[Callable[..., Any]]:
    shared = [
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object on stdout, on failure too."),
        click.option("-q", "--quiet", is_flag=True, help="Show only warnings and errors on stderr."),
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
            click.option("--offline", is_flag=True, help="Forbid the network, except for an Ollama server."),
            *shared,
        ]
    if writes:
        shared += [
            click.option("--dry-run", is_flag=True, help="Show what would be done, and write nothing."),
            click.option("--force", is_flag=True, help="Run even if fresh, and overwrite files that differ."),
        ]
    return shared


def verb(*, writes: bool = False, config: bool = True) -> Callable[[Callable[..., Any]], click.Command]:
    """Make a function a verb, with the options that verbs share."""

    def wrap(function: Callable[..., Any]) -> click.Command:
        command = as_command(function, writes=writes, config=config)
        group.add_command(command)
        return command

    return wrap


def as_command(function: Callable[..., Any], *, writes: bool, config: bool = True) -> click.Command:
    """Make a Click command of a function, with the options that verbs share."""

    @functools.wraps(function)
    def call(as_json: bool, quiet: bool, **options: Any) -> Any:
        console.configure(as_json=as_json, quiet=quiet)
        if options.pop("offline", False):
            network.forbid()
        try:
            return function(**options)
        except ToolkitError as exc:
            exc.hint = with_settings(exc.hint)
            raise

    command: Any = call
    for option in reversed(_options(writes, config)):
        command = option(command)
    made: click.Command = click.command(function.__name__, cls=Verb)(command)
    return made


def stage_verb(name: str) -> click.Command:
    """Make the verb of a stage without its own options."""

    def perform(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
        perform_one(name, path, overrides, dry_run, force)

    perform.__name__, perform.__doc__ = name, pipeline.STAGES[name][0]
    return as_command(perform, writes=True)


@click.group(cls=Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="toolkit")
def group() -> None:
    """Fine-tune a model on questions and answers, and prove that what Ollama runs is what was trained.

    The stages in order: prepare, train, export, validate, register. `run` runs those that are out of date.
    """
