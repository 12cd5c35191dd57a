"""Data files with random damage: every one is read or refused in one line, within seconds, and no row is lost.

    python benchmarks/fuzz_data.py [--files 1000] [--formats csv,xlsx] [--seed 0] [--minutes 60]

Of every format that many files, or as many as the minutes allow, of each as many: damaged_files.py says how they are
made. All are read under the settings of SETTINGS, in turn; the rows of one in eight are divided too. What is read is
compared with what second_reading.py finds in the file. One process reads, and another watches it: a file that ends the
process, or holds it, is found too. A failure is named by its format and seed, and written to fuzzed/ in the current
folder. Exit code 1 if there is any. The same seed gives the same file.
"""

import argparse
import contextlib
import io
import multiprocessing
import re
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from ctypes import Array
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from damaged_files import KINDS, damaged_file
from second_reading import lost

from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.streams import printable, visible
from toolkit.prepare.division import Rows, divide, read_rows
from toolkit.prepare.personal.analyzer import finder
from toolkit.prepare.source import Source
from toolkit.prepare.split import drop_duplicates

LIMIT = 20  # seconds of a processor for a file
HELD = 300  # seconds after which a file holds the process, also where Python's signals do not come through
MEMORY = 8 << 30  # bytes that the process may ask for
SAID = 60  # seconds between lines about what was done
DIVIDED = 8  # of so many files one is divided
SETTINGS: Sequence[Sequence[str]] = [
    ("data.personal=warn",),
    ("data.personal=off", "data.merge_messages=true"),
    ("data.personal=off",),
    ("data.personal=mask", "data.null_words=text"),
    ("data.personal=off", "data.near_duplicates=drop"),
    ("data.personal=off", "data.clean=['html', 'mojibake']"),
    ("data.personal=off", "data.encoding=cp1252"),
    ("data.personal=off",),
    ("data.personal=off", "train.turns=last"),
    ("data.personal=off", "data.near_duplicates=drop-across"),
]  # fmt: skip
_CONTROL = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f]")


def outcome(path: Path, kind: str, seed: int, config: Config) -> tuple[bool, str]:
    """Read a file; return whether it has rows, and what is wrong with how it was read or refused, "" if nothing."""
    found = None
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = read_rows([Source(path)], config)
            wrong = miscounted(found)
            if not wrong and not config.data.encoding:
                wrong = lost(kind, path.read_bytes(), found.tables[0].table)
            if not wrong and seed % DIVIDED == 0:
                wrong = miscounted_splits(found, config)
        return True, wrong
    except ToolkitError as exc:
        said = visible(printable(f"{exc.message} {exc.hint}"))
        whole = exc.hint and not _CONTROL.search(said)
        return found is not None, "" if whole else f"not one printable line with a hint: {said!r}"
    except BaseException:
        return found is not None, traceback.format_exc()
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def miscounted(found: Rows) -> str:
    """Say which rows are lost, there twice, or rejected without a reason; "" if none."""
    kept, refused = len(found.records), len(found.rejected)
    if kept + refused != found.count:
        return f"{found.count} rows, but {kept} kept and {refused} rejected"
    if any(not one.reason for one in found.rejected):
        return "a row is rejected without a reason"
    numbers = {one.number for one in found.records} | {one.number for one in found.rejected}
    if numbers != {row.number for one in found.tables for row in one.table.rows}:
        return f"{found.count} rows, but {len(numbers)} numbers of rows kept or rejected"
    once, duplicates = drop_duplicates(found.records)
    return "" if len(once) + duplicates == kept else f"{kept} rows, but {len(once)} and {duplicates} duplicates"


def miscounted_splits(found: Rows, config: Config) -> str:
    """Divide rows; say which are then lost, "" if none. Raises ToolkitError where they cannot be divided."""
    done = divide(found, config, lambda records: (records, []))
    used, refused = sum(map(len, done.splits.values())), len(done.rejected)
    whole = used + done.duplicates + refused == found.count and used == len(done.records)
    if not whole or any(not one.reason for one in done.rejected):
        return f"{found.count} rows, but {used} used, {done.duplicates} duplicates and {refused} rejected"
    return ""


class Progress:
    """What the reading process has done, as the watching one sees it: numbers in shared memory.

    `now` is the file that is read: its number among all, and since when. Of each kind `done`, `read` and `failed` are
    numbers of files, those `read` are not refused, and `slowest` is the most seconds of a processor that one took.
    """

    def __init__(self, kinds: Sequence[str]) -> None:
        self.kinds = kinds
        self.now: Array[Any] = multiprocessing.RawArray("d", 2)
        self.done: Array[Any] = multiprocessing.RawArray("q", len(kinds))
        self.failed: Array[Any] = multiprocessing.RawArray("q", len(kinds))
        self.read: Array[Any] = multiprocessing.RawArray("q", len(kinds))
        self.slowest: Array[Any] = multiprocessing.RawArray("d", len(kinds))

    def table(self) -> str:
        """Return the figures of each kind in a line."""
        counts = zip(self.kinds, self.done, self.read, self.failed, self.slowest, strict=True)
        each = (f"{kind:<12}{done:>9,}{read:>9,}{bad:>8,}{most:>12.2f}" for kind, done, read, bad, most in counts)
        return "\n".join([f"{'format':<12}{'files':>9}{'read':>9}{'failed':>8}{'slowest, s':>12}", *each])


def report(progress: Progress, at: int, seed: int, said: str) -> None:
    """Count a failure, keep its file, and say what is wrong."""
    kind = progress.kinds[at]
    progress.failed[at] += 1
    kept = Path("fuzzed") / f"{seed}.{kind}"
    kept.parent.mkdir(exist_ok=True)
    kept.write_bytes(damaged_file(kind, seed))
    kept.with_name(f"{kept.name}.txt").write_text(said, "utf-8", "backslashreplace")
    print(f"  {kind}, seed {seed}: {said.strip().splitlines()[-1]}", flush=True)


def read_all(progress: Progress, folder: Path, seed: int, first: int, last: int) -> None:
    """Read files from one number to another: of each seed one of every kind. Ends with the process that watches."""
    watching = multiprocessing.parent_process()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the watching process's to handle
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    signal.signal(signal.SIGPROF, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {LIMIT} s")))
    configs = [build({}, list(settings)) for settings in SETTINGS]
    finder("")("m@example.org")  # loads Presidio, which is no part of a file's seconds
    for number in range(first, last):
        if watching is None or not watching.is_alive():
            return
        own, at = seed + number // len(progress.kinds), number % len(progress.kinds)
        path = folder / f"mine.{progress.kinds[at]}"
        progress.now[:] = [number, time.monotonic()]
        path.write_bytes(damaged_file(progress.kinds[at], own))
        started = time.process_time()
        read, said = outcome(path, progress.kinds[at], own, configs[own % len(configs)])
        progress.slowest[at] = max(progress.slowest[at], time.process_time() - started)
        if said:
            report(progress, at, own, said)
        progress.read[at] += read
        progress.done[at] += 1


def watch(progress: Progress, folder: Path, seed: int, count: int, until: float) -> None:
    """Let another process read so many files, until a time at most; start it again behind a file that ended it."""
    first, spoken = 0, time.monotonic()
    while first < count and time.monotonic() < until:
        progress.now[:] = [first, time.monotonic() + HELD]  # it has yet to start
        files = (progress, folder, seed, first, count)
        reader = multiprocessing.get_context("spawn").Process(target=read_all, args=files, daemon=True)
        reader.start()
        held = False
        while reader.exitcode is None and not held and time.monotonic() < until:
            reader.join(1)
            held = time.monotonic() - progress.now[1] > HELD
            if time.monotonic() - spoken > SAID:
                spoken = time.monotonic()
                said = f"{sum(progress.done):,} files, {sum(progress.failed)} failed"
                print(f"{time.strftime('%H:%M:%S')} {said}", flush=True)
        if reader.exitcode == 0 and sum(progress.done) == count:
            return
        ended = reader.exitcode
        reader.kill()
        reader.join()
        if ended is None and not held:  # the time is over
            return
        if progress.now[1] > time.monotonic():
            sys.exit(f"the process that reads does not start: exit code {ended}")
        first = int(progress.now[0])
        at = first % len(progress.kinds)
        said = f"it holds the process for {HELD} s" if held else f"it ends the process: exit code {ended}"
        report(progress, at, seed + first // len(progress.kinds), said)
        progress.done[at] += 1
        first += 1


def main() -> None:
    """Fuzz all formats in turn, and print a line for each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="of each format (default 1000)")
    parser.add_argument("--formats", default=",".join(KINDS))
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    arguments = parser.parse_args()
    progress = Progress(arguments.formats.split(","))
    started = time.monotonic()
    memory = Path("/dev/shm")  # a disk would take longer than reading does
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    place = tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None)
    count, until = arguments.files * len(progress.kinds), started + 60 * arguments.minutes
    with place as folder, contextlib.suppress(KeyboardInterrupt):
        watch(progress, Path(folder), arguments.seed, count, until)
    print(f"{progress.table()}\n{time.monotonic() - started:.0f} s, seeds from {arguments.seed}", flush=True)
    sys.exit(any(progress.failed))


if __name__ == "__main__":
    main()
