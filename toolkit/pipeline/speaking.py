"""Where a run's messages go: to a function of the caller, to the terminal, or nowhere."""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from toolkit.core import quiet, streams
from toolkit.core.errors import explain
from toolkit.core.streams import State
from toolkit.pipeline import arguments

Progress = Callable[[str], object] | Literal["terminal"] | None


@contextmanager
def speaking(progress: Progress) -> Iterator[State]:
    """Direct what a call says to `progress`, and raise known foreign errors as ToolkitError, hint included."""
    arguments.check_progress(progress)
    quiet.silence_bitsandbytes()
    if progress == "terminal":  # the command line translates errors itself
        yield streams.state()
        return
    # Said by libraries that draw bars in a notebook, when they are imported; none is drawn.
    warnings.filterwarnings("ignore", message="IProgress not found")
    with streams.directed(progress or _nowhere) as state:
        try:
            yield state
        except BaseException as exc:
            known = explain(exc)
            if known is None:
                raise
            streams.write_log(f"error: {known.message}\nhint: {known.hint}")
            if known.hint and not hasattr(known, "__notes__"):
                known.add_note(f"hint: {known.hint}")
            if known is exc:
                raise
            raise known from exc


def be_first(state: State) -> None:
    """Silence the libraries before a stage of a Python program imports them, which may be one of several threads."""
    if state.sink is not None:
        quiet.silence_transformers()


def _nowhere(_: str) -> None:
    """Show nothing."""
