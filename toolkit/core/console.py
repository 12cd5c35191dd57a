"""The only module that prints: results on stdout, everything else on stderr, and a copy of it in the run's log.

Two modes: for people (tables, progress with time left) and `--json` (one object, the last line on stdout).
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core import plain
from toolkit.core.errors import ToolkitError
from toolkit.core.streams import can_show, emit, print_json, print_text, state, write_log


def configure(*, as_json: bool = False, quiet: bool = False) -> None:
    """Choose the mode of this process; `quiet` keeps warnings and errors only."""
    state().json = as_json
    state().quiet = quiet
    state().log = None
    state().warnings.clear()


def as_json() -> bool:
    """Tell whether this process prints JSON."""
    return state().json


def is_quiet() -> bool:
    """Tell whether this process keeps warnings and errors only."""
    return state().quiet


@contextmanager
def without_notes() -> Iterator[None]:
    """Say nothing but warnings and errors inside: what is only tried tells the user nothing."""
    here = state()
    former, here.quiet = here.quiet, True
    try:
        yield
    finally:
        here.quiet = former


def log_to(path: Path | None) -> None:
    """Append every printed line to `path` too, with the time in front; None stops it."""
    state().log = path


def info(text: str) -> None:
    """Print one line about the current work."""
    if not state().quiet:
        emit(text)
    else:
        write_log(text)


def done(text: str) -> None:
    """Print that something succeeded."""
    if not state().quiet:
        emit(f"{'✓' if can_show('✓') else '[OK]'} {text}", "green")
    else:
        write_log(text)


def warn(text: str) -> None:
    """Print a warning; the work continues."""
    state().warnings.append(text)
    emit(f"warning: {text}", "yellow")


def warn_once(text: str) -> None:
    """Print a warning, unless it came before in this process or, from Python, in this call of a run."""
    if text not in state().warnings:
        warn(text)


def error(problem: ToolkitError) -> None:
    """Print an error and its hint; with `--json`, the same as the one object on stdout."""
    emit(f"error: {problem.message}", "bold red")
    if problem.hint:
        emit(f"\nhint: {problem.hint}")
    if state().json:
        outcome = {"ok": False, "error": problem.message, "hint": problem.hint, "exit_code": problem.exit_code}
        print_json({**outcome, **problem.details})


def next_step(command: str) -> None:
    """Name the command that comes next, with real paths and names."""
    if not state().quiet:
        emit(f"next: {command}", "bold")


def result(payload: dict[str, Any], text: str = "") -> None:
    """Print a verb's result on stdout: `text` for people, or `payload` as one JSON object with `"ok": true`."""
    if state().json:
        print_json({"ok": True, **payload})
    elif text:
        write_log(text)
        print_text(text)


def stream(piece: str) -> None:
    """Print a piece of an answer on stdout as it comes; nothing with `--json`."""
    if not state().json:
        print_text(piece, end="")


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], *, title: str = "") -> str:
    """Format rows as a plain text table that reads without colour; numbers are right-aligned."""
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return plain.table(columns, rows, title)
    grid = Table(title=title or None, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for index, name in enumerate(columns):
        grid.add_column(name, justify="right" if plain.is_numeric(rows, index) else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    width = Console(file=sys.stdout).width if sys.stdout.isatty() else 160
    # In a notebook rich would show the table itself.
    console = Console(file=sys.stdout, width=max(width, 60), color_system=None, force_jupyter=False)
    with console.capture() as captured:
        console.print(grid)
    return "\n".join(line.rstrip() for line in captured.get().splitlines()).strip("\n")


@dataclass
class Progress:
    """A running count; `advance` and `note` are cheap enough to be called at every step."""

    label: str
    total: float
    unit: str
    started: float = field(default_factory=time.monotonic)
    done: float = 0.0
    text: str = ""
    _printed: float = field(default_factory=time.monotonic)
    _skipped: float = 0.0
    _first: tuple[float, float] | None = None  # when the first of this count were done, and how many they were
    _bar: Any = None
    _task: Any = None

    def advance(self, amount: float = 1.0, note: str | None = None) -> None:
        """Add `amount` of `unit`, and show `note` (loss, speed, …) next to it."""
        self.done += amount
        self._first = self._first or (time.monotonic(), self.done - self._skipped)
        if note is not None:
            self.text = note
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done, note=self._note())
        elif time.monotonic() - self._printed >= PLAIN_INTERVAL and not state().quiet:
            self._printed = time.monotonic()
            emit(self.line())

    def skip_to(self, done: float) -> None:
        """Start from `done` (an interrupted run that continues), without counting it as speed."""
        self.done = done
        self._skipped = done
        self._first = None
        self.started = time.monotonic()

    def skip(self, amount: float) -> None:
        """Count `amount` that had been done before, not as speed; it is shown with the next step."""
        self.done += amount
        self._skipped += amount

    def seconds(self) -> float:
        """Return the seconds since the count (re)started."""
        return time.monotonic() - self.started

    def seconds_left(self) -> float | None:
        """Estimate the seconds that remain from the speed so far; None while there is none.

        The first step loads what the others use, and does not count. Bytes all do.
        """
        if self._first is None or self.total <= 0:
            return None
        since, before = (self.started, 0.0) if self.unit == "B" else self._first
        fresh = self.done - self._skipped - before
        return max(0.0, (time.monotonic() - since) / fresh * (self.total - self.done)) if fresh > 0 else None

    def _note(self) -> str:
        left = self.seconds_left()
        if left is None:
            return self.text
        speed = f"{size((self.done - self._skipped) / max(self.seconds(), 1e-6))}/s" if self.unit == "B" else ""
        return "  ".join(part for part in (self.text, speed, f"{duration(left)} left") if part)

    def line(self) -> str:
        """Say the same in one plain line, for logs and pipes."""
        if self.unit == "B":
            count = f"{size(self.done)} of {size(self.total)}"
        else:
            count = f"{self.done:,.0f}/{self.total:,.0f} {self.unit}"
        return "  ".join(part for part in (f"{self.label}: {count}", self._note()) if part)


PLAIN_INTERVAL = 10.0  # seconds between progress lines where there is no terminal


@contextmanager
def progress(label: str, total: float, unit: str) -> Iterator[Progress]:
    """Show done, total, speed and time left; a moving bar on a terminal, elsewhere a plain line every few seconds.

    `unit` is a plural noun, or `B` for bytes.
    """
    tracker = Progress(label, total, unit)
    moving = state().sink is None and sys.stderr.isatty() and not state().quiet and os.environ.get("TERM") != "dumb"
    bar = _bar(unit) if moving else None
    if bar is None:
        yield tracker
    else:
        with bar:
            tracker._bar = bar
            tracker._task = bar.add_task(label, total=total, note="")
            yield tracker
    write_log(tracker.line())


def _bar(unit: str) -> Any:
    """Return a moving bar that counts in `unit`; None without `rich`."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, MofNCompleteColumn, TextColumn
        from rich.progress import Progress as Bar
    except ImportError:
        return None
    count = DownloadColumn() if unit == "B" else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TextColumn("{task.fields[note]}"))
    return Bar(*columns, console=Console(stderr=True), transient=True)


def size(count: float) -> str:
    """Write a number of bytes for people, in powers of 1,000."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if abs(value) < 1000:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1000
    return f"{value:.2f} TB"


def duration(seconds: float) -> str:
    """Write a time span for people: `4.2 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"
