"""Messages to and from the process that has a GGUF open: Python objects through pipes, arrays without a copy."""

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, Any

import numpy as np


class Broken(Exception):
    """The other process has ended, or closed its pipe."""


@dataclass(frozen=True)
class Call:
    """A function to call with the open file and these arguments; the first call of all opens the file."""

    function: Callable[..., Any]
    arguments: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Step:
    """A generator to advance by one, or to close."""

    number: int
    close: bool = False


@dataclass(frozen=True)
class CallBack:
    """A function of the asking process: the argument of that number of a call, in its place; with arguments a call."""

    number: int
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True)
class Reply:
    """What came of a request: a value, the number of a generator, an error, or that a generator is at its end."""

    value: Any = None
    generator: int | None = None
    error: Exception | None = None
    ended: bool = False


def write_message(stream: IO[bytes], message: object) -> None:
    """Write one object; raises Broken if nobody can read it any more."""
    buffers: list[pickle.PickleBuffer] = []
    body = pickle.dumps(message, protocol=5, buffer_callback=buffers.append)
    raws = [buffer.raw() for buffer in buffers]
    try:
        pickle.dump((body, [raw.nbytes for raw in raws]), stream)
        for raw in raws:
            stream.write(raw)
        stream.flush()
    except OSError as exc:
        raise Broken from exc


def read_message(stream: IO[bytes]) -> Any:
    """Read one object; raises Broken at the end of the pipe, or if it ends within an object."""
    try:
        body, sizes = pickle.load(stream)
    except (EOFError, pickle.UnpicklingError) as exc:
        raise Broken from exc
    return pickle.loads(body, buffers=[_read_bytes(stream, size) for size in sizes])


def _read_bytes(stream: IO[bytes], size: int) -> memoryview:
    found = np.empty(size, np.uint8).data  # not cleared first, as a bytearray is
    done = 0
    while done < size:
        count = stream.readinto(found[done:])  # type: ignore[attr-defined]
        if not count:
            raise Broken
        done += count
    return found
