"""Calls into libraries in Rust and C++: their panics (a BaseException, after lines on stderr) and their own lines.

stderr's file descriptor belongs to all threads, so one of them at a time redirects it.
"""

import contextlib
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator

from toolkit.core.errors import ToolkitError

_redirected = threading.RLock()
_building = threading.RLock()


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
    with _redirected, contextlib.ExitStack() as stack:
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


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Keep a C library's own lines off stderr: it writes to the file descriptor, below Python."""
    if os.environ.get("TOOLKIT_DEBUG"):
        yield
        return
    with _redirected, contextlib.ExitStack() as stack:
        usual = os.dup(2)
        stack.callback(os.close, usual)
        nowhere = os.open(os.devnull, os.O_WRONLY)
        stack.callback(os.close, nowhere)
        os.dup2(nowhere, 2)
        stack.callback(os.dup2, usual, 2)
        yield


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Let one thread at a time make a model of torch: accelerate's empty weights change torch for all of them."""
    with _building:
        yield
