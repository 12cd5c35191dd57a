"""A GGUF file in progress whose tensors come in any order: each is written at its place and hashed."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CHUNK = 1 << 22


class PlacedFile:
    """One output whose tensors come in any order; `digests` are those that came since they were last taken."""

    def __init__(self, part: Path, target: Path, places: Mapping[str, int], size: int) -> None:
        self.part, self.target, self.size = part, target, size
        self._places, self._position, self._name = places, 0, ""
        self._hashes: dict[str, Any] = {}
        self.descriptor = os.open(part, os.O_RDWR | os.O_CREAT, 0o644)

    def begin(self, name: str) -> None:
        """Go to a tensor's place."""
        self._name, self._position = name, self._places[name]
        self._hashes[name] = hashlib.sha256()

    def write(self, data: Any) -> None:
        """Write the next bytes of the tensor; an OSError names the target."""
        view = memoryview(data).cast("B")
        self._hashes[self._name].update(view)
        while view:
            try:
                count = os.pwrite(self.descriptor, view, self._position)
            except OSError as exc:
                raise OSError(exc.errno, exc.strerror, str(self.target)) from None
            self._position += count
            view = view[count:]

    def pad(self) -> None:
        """End a tensor; the file has its whole length from the beginning, so that all gaps are zeros."""

    def taken(self) -> dict[str, str]:
        """Return the hashes of the tensors that came since the last call, once they are on the disk."""
        try:
            os.fsync(self.descriptor)
        except OSError as exc:
            raise OSError(exc.errno, exc.strerror, str(self.target)) from None
        found = {name: hasher.hexdigest() for name, hasher in self._hashes.items()}
        self._hashes = {}
        return found

    def holds(self, name: str, size: int, digest: str) -> bool:
        """Tell whether a tensor of `size` bytes stands in the file as it was written."""
        hasher, position, end = hashlib.sha256(), self._places[name], self._places[name] + size
        while position < end:
            data = os.pread(self.descriptor, min(CHUNK, end - position), position)
            if not data:
                return False
            hasher.update(data)
            position += len(data)
        return hasher.hexdigest() == digest
