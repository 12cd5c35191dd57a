"""What an evaluation has done so far, a line for each item: an interrupted one goes on with the next.

Each item has a key, a hash of all that its result depends on. A line that was cut off by a crash does not count.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.files import naming


def key_of(*parts: Any) -> str:
    """Return a hash of what a result depends on (plain values)."""
    return hashlib.sha256(json.dumps(parts, ensure_ascii=False).encode("utf-8", "surrogatepass")).hexdigest()[:32]


@dataclass
class Journal:
    """The results so far, by key."""

    path: Path
    values: dict[str, Any] = field(default_factory=dict)
    _file: Any = None

    def get(self, key: str) -> Any:
        """Return a result, None if there is none yet."""
        return self.values.get(key)

    def put(self, key: str, value: Any) -> None:
        """Keep a result (a plain value); it is in the file before this returns. Raises OSError on a full disk."""
        line = json.dumps({"key": key, "value": value}, ensure_ascii=True) + "\n"
        with naming(self.path):
            rest = line.encode()
            while rest:  # a disk that is almost full takes a part
                rest = rest[os.write(self._file, rest) :]
        self.values[key] = value


@contextlib.contextmanager
def journal(path: Path, *, fresh: bool = False) -> Iterator[Journal]:
    """Open the journal in the run's folder; `fresh` begins a new one. It is removed if the block succeeds."""
    found = Journal(path, {} if fresh else _read(path))
    with naming(path):
        # What was cut off in the middle is left out, so that the next line begins where one begins.
        path.parent.mkdir(parents=True, exist_ok=True)
        found._file = os.open(path, os.O_RDWR | os.O_CREAT | (os.O_TRUNC if fresh else 0), 0o644)
        os.lseek(found._file, 0, os.SEEK_SET)
        os.ftruncate(found._file, _whole(path))
        os.lseek(found._file, 0, os.SEEK_END)
    try:
        yield found
    finally:
        os.close(found._file)
    path.unlink(missing_ok=True)


def _whole(path: Path) -> int:
    """Return the number of bytes up to the last whole line."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


def _read(path: Path) -> dict[str, Any]:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return {}
    values = {}
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        try:
            one = json.loads(line)
            values[str(one["key"])] = one["value"]
        except (ValueError, KeyError, TypeError):
            raise ToolkitError(
                f"`{path}` is damaged: a line is no result",
                hint="start over: remove it, or use `toolkit evaluate --force`",
            ) from None
    return values
