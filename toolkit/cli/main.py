"""Where the command line begins and ends: every failure is one line, a hint and an exit code."""

import os
import sys

import click

from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core import console
from toolkit.core.errors import INTERRUPTED, USAGE, ToolkitError, explain, unexpected


def main() -> None:
    """Run the command line; every failure ends in one line, a hint and its exit code."""
    code = 0
    try:
        _main()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:  # nobody reads on, and nothing is to complain about it when the interpreter ends
        code = 1
        console.let_go(sys.stdout.fileno(), sys.stderr.fileno())
    from toolkit.core import hardware

    if hardware.launched():
        # One of several that a launcher started: gloo's threads now and then abort an interpreter that shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _main() -> None:
    try:
        group.main(standalone_mode=False)
    except click.exceptions.Exit as exc:
        sys.exit(exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        exc.show()
        sys.exit(USAGE)
    except click.ClickException as exc:
        _usage(exc)
    except (KeyboardInterrupt, click.Abort):
        _fail(ToolkitError("interrupted", hint="the same command goes on from there", exit_code=INTERRUPTED))
    except BrokenPipeError:
        raise
    except Exception as exc:
        if os.environ.get("TOOLKIT_DEBUG"):
            raise
        _fail(explain(exc) or unexpected(exc))


def _usage(exc: click.ClickException) -> None:
    if "--json" in sys.argv:
        console.configure(as_json=True)
    context = getattr(exc, "ctx", None)
    where = context.command_path if context else "toolkit"
    _fail(ToolkitError(exc.format_message().rstrip("."), hint=f"{where} --help", exit_code=USAGE))


def _fail(problem: ToolkitError) -> None:
    console.error(problem)
    sys.exit(problem.exit_code)
