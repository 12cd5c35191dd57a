"""The start and end of the command line: every failure becomes one line, a hint and an exit code."""

import os
import sys
import warnings

import click

from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core import console
from toolkit.core.errors import INTERRUPTED, USAGE, ToolkitError, explain, unexpected
from toolkit.core.quiet import silence_bitsandbytes
from toolkit.core.signals import ending_cleanly
from toolkit.core.streams import let_go, tolerate_any_text


def main() -> None:
    """Run the command line; every failure ends in one line, a hint and its exit code."""
    code = 0
    tolerate_any_text()
    _calm_warnings()
    silence_bitsandbytes()
    try:
        with ending_cleanly():
            _main()
    except KeyboardInterrupt:  # a second one, while the first was being reported
        code = INTERRUPTED
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1
    except BrokenPipeError:  # the reader is gone, and the interpreter must not complain about it at its end
        code = 1
        let_go(sys.stdout.fileno(), sys.stderr.fileno())
    from toolkit.core import hardware

    if hardware.launched():
        # One of several that a launcher started: gloo's threads now and then abort an interpreter that shuts down.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


def _calm_warnings() -> None:
    """Keep libraries' warnings from ending a verb, here and in the processes that it starts (PYTHONWARNINGS=error)."""
    if any(option.startswith("error") for option in sys.warnoptions):
        warnings.resetwarnings()
        warnings.simplefilter("ignore")
        os.environ.pop("PYTHONWARNINGS", None)


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
        _fail(ToolkitError("interrupted", hint="the same command continues from there", exit_code=INTERRUPTED))
    except BrokenPipeError:
        raise
    except (SystemExit, GeneratorExit):
        raise
    except BaseException as exc:  # a panic inside a library in Rust is not an Exception
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
