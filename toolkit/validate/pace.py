"""How many held-out rows a machine has the time and the disk for; the first rows are timed."""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from toolkit import llamacpp
from toolkit.core import console
from toolkit.core.output_settings import LEAST_ROWS
from toolkit.core.records import spread
from toolkit.prompt.held_out import Record
from toolkit.validate.layers import BOTH, Trained, chunk_size, head, logits_of, ready, through, with_adapter
from toolkit.validate.spill import RESERVE

SECONDS = 300.0  # for one file, and for the reference
TIMED = 2  # rows whose time is taken, after one that loads what is loaded once
DISK = 0.25  # share of the free disk that the last layer's states may take

Clock = Callable[[], float]


def choose_rows(records: Sequence[Record], trained: Trained, default: Path, folder: Path, clock: Clock) -> list[Record]:
    """Choose as many records as fit into about five minutes a file: at least 10, or all, spread evenly.

    The time is that of the default quantization in llama.cpp, or of the reference if that is slower. The last layer's
    states take at most a quarter of the free disk in `folder`.
    """
    if len(records) <= LEAST_ROWS:
        return [*records]
    first = spread(records, TIMED + 1)
    speeds = {"the reference": _reference(trained, first, clock), default.name: _in_llamacpp(default, first, clock)}
    slowest = max(speeds, key=lambda name: speeds[name])
    seen = float(np.mean([len(record.seen) for record in records]))
    size = 4 * len(BOTH) * seen * trained.skeleton.hidden_size
    room = DISK * max(0, shutil.disk_usage(folder).free - RESERVE)
    count = count_rows(len(records), speeds[slowest] * seen, size, room)
    each = console.duration(speeds[slowest] * seen)
    console.info(
        f"{count:,} of {len(records):,} held-out rows are scored: {slowest} takes {each} a row (validate.rows)"
    )
    return spread(records, count)


def count_rows(there: int, seconds: float, size: float, room: float) -> int:
    """Return the number of rows out of those that are there, from the seconds and the bytes of disk of one row."""
    wanted = min(SECONDS / max(seconds, 1e-9), room / max(size, 1.0))
    return int(min(there, max(LEAST_ROWS, wanted)))


def _reference(trained: Trained, records: Sequence[Record], clock: Clock) -> float:
    """Return the seconds that a token takes with the adapter and without it, from the first layer and the head."""
    layers = len(trained.skeleton.decoder.layers)
    with ready(trained, -1, records):
        states = [through(trained, -1, record, np.empty(0, np.float32)) for record in records]

    def layer() -> None:
        for adapted in BOTH:
            with with_adapter(trained.skeleton, adapted):
                for record, values in list(zip(records, states, strict=True))[1:]:
                    through(trained, 0, record, values)

    positions = np.concatenate([values[record.first :] for record, values in zip(records, states, strict=True)][1:])
    some = positions[: chunk_size(trained.skeleton)]

    with ready(trained, 0, records):
        through(trained, 0, records[0], states[0])
        one = _timed(layer, clock)
    with head(trained):
        logits_of(trained.skeleton, states[0][-1:])
        last = _timed(lambda: logits_of(trained.skeleton, some), clock) / len(some) * len(positions)
    return (layers * one + len(BOTH) * last) / sum(len(record.seen) for record in records[1:])


def _in_llamacpp(path: Path, records: Sequence[Record], clock: Clock) -> float:
    """Return the seconds that a token takes in llama.cpp."""
    with llamacpp.opened(path, max(len(record.ids) for record in records) + 1) as llm:
        llamacpp.logits(llm, records[0].seen, records[0].first)
        seconds = _timed(lambda: [llamacpp.logits(llm, one.seen, one.first) for one in records[1:]], clock)
    return seconds / sum(len(record.seen) for record in records[1:])


def _timed(work: Callable[[], object], clock: Clock = time.perf_counter) -> float:
    start = clock()
    work()
    return clock() - start
