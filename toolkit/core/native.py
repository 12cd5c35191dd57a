"""Calls into libraries in Rust, which answer damaged input with a panic: a BaseException, after lines on stderr."""

import contextlib
import os
import sys
import tempfile
from collections.abc import Callable, Iterator

from toolkit.core.errors import ToolkitError


@contextlib.contextmanager
def guarded(refusal: Callable[[str], ToolkitError], *, silent: bool = False) -> Iterator[None]:
    """Raise `refusal(reason)` for any error or panic of a library during the block.

    With `silent` the library's own lines on stderr are then hidden. That holds for all threads, so use it for short
    calls only.
    """
    with _held_back() if silent else contextlib.nullcontext():
        try:
            yield
        except ToolkitError:
            raise
        except BaseException as exc:
            if not (isinstance(exc, Exception) or type(exc).__name__ == "PanicException"):
                raise
            said = " ".join(str(exc).split())[:300]
            ours = type(exc) is not Exception and isinstance(exc, Exception)  # else its text says what it is
            raise refusal(f"{type(exc).__name__}: {said}" if ours or not said else said) from None


@contextlib.contextmanager
def _held_back() -> Iterator[None]:
    """Hold back what is written on stderr, and show it if the block succeeds."""
    with contextlib.ExitStack() as stack:
        try:
            usual = os.dup(2)
            stack.callback(os.close, usual)
            held = stack.enter_context(tempfile.TemporaryFile())
        except OSError:  # stderr is closed, or there is no room for temporary files
            yield
            return
        if sys.stderr is not None:
            sys.stderr.flush()
        os.dup2(held.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(usual, 2)
        held.seek(0)
        said = held.read()
        if said:
            with contextlib.suppress(OSError):  # the reader is gone, or the disk is full
                os.write(2, said)
