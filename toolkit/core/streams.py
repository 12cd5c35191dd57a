"""Where text leaves this process: stdout, stderr and the run's log, whatever the terminal can show."""

import contextlib
import json
import os
import stat
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WIDTH = 10_000  # lines are left to the terminal to wrap


@dataclass
class State:
    """How this process prints: JSON or text, warnings alone, and the file that keeps a copy of all lines."""

    json: bool = False
    quiet: bool = False
    log: Path | None = None


state = State()


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


def write_log(text: str) -> None:
    """Append lines to the log, with the time in front; a failed write stops the log."""
    if state.log is None:
        return
    stamp = time.strftime("%Y-%m-%d %H:%M:%S")
    try:
        with state.log.open("a", encoding="utf-8") as file:
            file.writelines(f"{stamp}  {line}\n" for line in printable(text).splitlines() or [""])
    except OSError:
        state.log = None  # a log that cannot be written must not stop the work it describes


def emit(text: str, style: str = "") -> None:
    """Print lines on stderr, in a style of rich's where that is installed."""
    text = printable(text)
    write_log(text)
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
    """Tell whether stderr's encoding has a symbol."""
    try:
        symbol.encode(getattr(sys.stderr, "encoding", None) or "ascii")
    except UnicodeEncodeError:
        return False
    return True
