"""The answers so far, one line for each item: they are kept, so that only new items are asked.

Each item has a key, a hash of all that its result depends on: an interrupted evaluation goes on with the next item, and
one of other settings asks what the former did not. A line that was cut off by a crash does not count.
"""

import contextlib
import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit.core.errors import ToolkitError
from toolkit.core.files import naming, write_text

OWNER = 16  # characters of a key that say whose result it is


def key_of(owner: str, *parts: Any) -> str:
    """Return a hash of what a result depends on (plain values); it begins with the owner, a hash of a system."""
    text = json.dumps([owner, *parts], ensure_ascii=False)
    return f"{owner[:OWNER]}-{hashlib.sha256(text.encode('utf-8', 'surrogatepass')).hexdigest()[:32]}"


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
        with naming(self.path):
            rest = _line(key, value).encode()
            while rest:  # a disk that is almost full takes a part
                rest = rest[os.write(self._file, rest) :]
        self.values[key] = value

    def keep(self, owners: Iterable[str]) -> None:
        """Forget the results of all but these owners: a model that was trained again answers otherwise."""
        kept = {owner[:OWNER] for owner in owners}
        found = {key: value for key, value in self.values.items() if key.rpartition("-")[0] in kept}
        self.values = dict(sorted(found.items()))  # the same file, in whatever order it was asked
        write_text(self.path, "".join(_line(key, value) for key, value in self.values.items()))


@contextlib.contextmanager
def journal(path: Path, *, fresh: bool = False) -> Iterator[Journal]:
    """Open the journal in the run's folder; `fresh` begins a new one."""
    found = Journal(path, {} if fresh else read_journal(path))
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


def _line(key: str, value: Any) -> str:
    return json.dumps({"key": key, "value": value}, ensure_ascii=True) + "\n"


def _whole(path: Path) -> int:
    """Return the number of bytes up to the last whole line."""
    content = path.read_bytes()
    return content.rfind(b"\n") + 1


def read_journal(path: Path) -> dict[str, Any]:
    """Read the results by key; raises ToolkitError if a line is none."""
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
