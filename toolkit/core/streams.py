"""Where output goes: stdout, stderr and the run's log, or a function that a Python program passed.

What is chosen by `directed` holds in that thread alone, so several runs at once each have their own.
"""

import contextlib
import json
import os
import re
import stat
import sys
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f]")
WIDTH = 10_000  # lines are left to the terminal to wrap


@dataclass
class State:
    """How text is printed: JSON or text, warnings alone, and the file that keeps a copy of all lines.

    `sink` is called with each text in place of stderr. `warnings` holds those that came so far.
    """

    json: bool = False
    quiet: bool = False
    log: Path | None = None
    sink: Callable[[str], object] | None = None
    warnings: list[str] = field(default_factory=list)


_of_process = State()
_directed: ContextVar[State | None] = ContextVar("directed", default=None)


def state() -> State:
    """Return how text is printed here: as `directed` says around this call, else as the process does."""
    return _directed.get() or _of_process


@contextlib.contextmanager
def directed(sink: Callable[[str], object]) -> Iterator[State]:
    """Give what is said during the block to a function, in place of stderr; a thread that it starts is not included.

    `contextvars.copy_context` includes one.
    """
    token = _directed.set(State(sink=sink))
    try:
        yield state()
    finally:
        _directed.reset(token)


def adopt(found: State) -> None:
    """Print in this thread, which a pool started, as `found` says: the state of the thread that uses the pool."""
    _directed.set(found)


def tolerate_any_text() -> None:
    """Let stdout and stderr show a character that their encoding lacks as its number, in place of an error."""
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(
            AttributeError, ValueError
        ):  # closed, or replaced by something that is not a text file
            stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]


def printable(text: str) -> str:
    """Return text with bytes of a file name that are not UTF-8 written as `\\xNN`, and halves of characters too."""
    with contextlib.suppress(UnicodeEncodeError):
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def visible(text: str) -> str:
    """Return text with control characters written as `\\xNN`, all but tab and newline: they move the cursor."""
    return _CONTROL.sub(lambda match: f"\\x{ord(match[0]):02x}", text)


def write_log(text: str) -> None:
    """Append lines to the log, with the time in front; a failed write stops the log."""
    log = state().log
    if log is None:
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        with log.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp}  {line}\n" for line in printable(text).splitlines() or [""])
    except OSError:
        state().log = None  # a log that cannot be written must not stop the work it describes


def emit(text: str, style: str = "") -> None:
    """Print lines on stderr, in a style of rich's where that is installed."""
    text = visible(printable(text))
    write_log(text)
    show(text, style)


def show(text: str, style: str = "") -> None:
    """Print lines as `emit` does, but not into the log."""
    sink = state().sink
    if sink is not None:
        sink(text)
        return
    try:
        _show(text, style)
    except OSError:  # the terminal, or the program that read, is gone: the work continues
        let_go(sys.stderr.fileno())


def _show(text: str, style: str) -> None:
    try:
        from rich.console import Console
        from rich.text import Text
    except ImportError:  # an error that names a missing library must be printed without that library too
        print(text, file=sys.stderr, flush=True)
        return
    if sys.stderr is not None and sys.stderr.isatty():
        # An explicit width: rich trusts COLUMNS, and writes nothing at all where that is 0.
        Console(stderr=True, highlight=False, soft_wrap=True, width=WIDTH).print(Text(text, style=style))
    else:  # rich ends the process where the reader is gone
        print(text, file=sys.stderr, flush=True)


def let_go(*streams: int) -> None:
    """Discard what is written to these file descriptors."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in streams:
        os.dup2(nowhere, stream)
    os.close(nowhere)


def hang_up() -> None:
    """Print no more to a terminal that has gone: writing would fail. Files and the run's log continue."""
    let_go(*(stream for stream in (1, 2) if stat.S_ISCHR(os.fstat(stream).st_mode)))


def print_text(text: str, end: str = "\n") -> None:
    """Print text on stdout."""
    print(printable(text), end=end, flush=True)


def print_json(payload: dict[str, Any]) -> None:
    """Print one JSON object on stdout; characters are escaped where the text would hold halves of them."""
    text = json.dumps(payload, ensure_ascii=False, default=str)
    try:
        text.encode(getattr(sys.stdout, "encoding", None) or "utf-8")
    except UnicodeEncodeError:
        text = json.dumps(payload, default=str)
    print(text, flush=True)


def can_show(symbol: str) -> bool:
    """Tell whether a symbol can be shown; stderr's encoding may lack it."""
    if state().sink is not None:
        return True
    try:
        symbol.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
