"""Pieces of a hub's shards: each is fetched, used and deleted, and every hash is checked."""

import contextlib
import hashlib
import json
import os
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import locked_folder, naming, writing
from toolkit.core.parsing import read_json, read_json_or_nothing
from toolkit.formats.checkpoint import HEADER
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import AGAIN, TensorInfo
from toolkit.model.hub_range import HubShards, Shard, fetch
from toolkit.model.hub_shards import tensors_of

PIECE = 1 << 27  # bytes that are fetched at once, or one tensor where that is larger
CHUNK = 1 << 20
DIGESTS = "digests.json"


def order(source: HubShards) -> list[Shard]:
    """Return the shards with the largest tensors first: the results take the least room then."""
    largest = {
        name: max((each.size for each in tensors_of(source, shard)), default=0) for name, shard in source.shards.items()
    }
    return sorted(source.shards.values(), key=lambda shard: -largest[shard.name])


def pieces(source: HubShards, shard: Shard) -> Iterator[dict[str, TensorInfo]]:
    """Yield a shard's tensors, some at a time, in files that are deleted when the next ones are asked for.

    The next piece is fetched meanwhile. After the last one the hash of all bytes is compared with the hub's, and the
    hash of each tensor is noted. Raises ToolkitError if they differ or the hub does not answer.
    """
    groups: list[list[TensorInfo]] = []
    for tensor in tensors_of(source, shard):
        if not groups or sum(each.size for each in groups[-1]) + tensor.size > PIECE:
            groups.append([])
        groups[-1].append(tensor)
    hasher, noted, stopped = shard.hasher(), {}, threading.Event()
    hasher.update((source.folder / f"{shard.name}{HEADER}").read_bytes())

    def one(number: int, folder: Path) -> dict[str, TensorInfo]:
        group = groups[number]
        start, end = group[0].offset, group[-1].offset + group[-1].size
        place = folder / f"{number}"
        with place.open("wb") as file:

            def take(data: bytes) -> None:
                if stopped.is_set():
                    raise InterruptedError("the rest of the piece is not wanted")
                hasher.update(data)
                with naming(source.folder):
                    file.write(data)

            fetch(source, shard, start, end, take)
        found = {tensor.name: replace(tensor, path=place, offset=tensor.offset - start) for tensor in group}
        noted.update({name: _sha256(tensor) for name, tensor in found.items()})
        return found

    with locked_folder(source.folder, ".pieces.", ".part") as folder, ThreadPoolExecutor(1) as thread:
        try:
            waiting = thread.submit(one, 0, folder) if groups else None
            for number in range(len(groups)):
                assert waiting is not None
                found = waiting.result()
                if number + 1 < len(groups):
                    waiting = thread.submit(one, number + 1, folder)
                yield found
                (folder / f"{number}").unlink()
        finally:
            stopped.set()
            thread.shutdown(wait=True, cancel_futures=True)
    if hasher.hexdigest() != shard.digest:
        (source.folder / f"{shard.name}{HEADER}").unlink(missing_ok=True)
        raise ToolkitError(
            f"`{shard.name}` of `{source.label}` was fetched with another hash than the hub states: "
            f"{hasher.hexdigest()[:16]} instead of {shard.digest[:16]}",
            hint="run the same command again: it is fetched again, and what was done before it is kept",
        )
    _note(source, shard, noted)


def _sha256(tensor: TensorInfo) -> str:
    hasher, left = hashlib.sha256(), tensor.size
    with tensor.path.open("rb") as file:
        file.seek(tensor.offset)
        while left:
            data = file.read(min(left, CHUNK))
            if not data:
                raise ToolkitError(f"`{tensor.path}` ends in the middle of `{visible(tensor.name)}`", hint=AGAIN)
            hasher.update(data)
            left -= len(data)
    return hasher.hexdigest()


def _note(source: HubShards, shard: Shard, digests: dict[str, str]) -> None:
    known = {**read_json_or_nothing(source.folder / DIGESTS), shard.name: {"shard": shard.digest, "tensors": digests}}
    with writing(source.folder / DIGESTS) as file:
        file.write(json.dumps(known).encode())


def digests(source: HubShards, shard: Shard) -> dict[str, str]:
    """Return the SHA-256 of each tensor of a shard whose own hash was checked; it is fetched once if none was."""
    known = read_json_or_nothing(source.folder / DIGESTS).get(shard.name)
    if not isinstance(known, dict) or known.get("shard") != shard.digest:
        console.info(f"{shard.name}: {console.size(shard.size)} are fetched once to check their hash")
        for _ in pieces(source, shard):
            pass
        known = read_json(source.folder / DIGESTS)[shard.name]
    found: dict[str, str] = known["tensors"]
    return found


def digest_of(source: HubShards, tensor: TensorInfo) -> str:
    """Return the SHA-256 of a tensor's bytes, wherever they are."""
    shard = source.shards.get(tensor.path.name) if tensor.path.parent == source.folder else None
    return digests(source, shard)[tensor.name] if shard else _sha256(tensor)


@contextlib.contextmanager
def at_hand(source: HubShards, tensor: TensorInfo) -> Iterator[TensorInfo]:
    """Fetch one tensor for the time of the block, in memory: the disk may be full. One that is here stays as it is.

    It is compared with its hash, which was noted when its shard was checked. Raises ToolkitError if it differs.
    """
    shard = source.shards.get(tensor.path.name) if tensor.path.parent == source.folder else None
    if shard is None:
        yield tensor
        return
    expected = digests(source, shard)[tensor.name]
    with _in_memory(source.folder) as file:
        fetch(source, shard, tensor.offset, tensor.offset + tensor.size, file.write)
        file.flush()
        local = replace(tensor, path=Path(f"/dev/fd/{file.fileno()}"), offset=0)
        if _sha256(local) != expected:
            raise ToolkitError(
                f"`{visible(tensor.name)}` of `{source.label}` was fetched with another hash than before",
                hint="run the same command again",
            )
        yield local


def _in_memory(folder: Path) -> IO[bytes]:
    """Open a file without a name in main memory, or on the disk where the system has none."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("tensor"), "w+b")
    return tempfile.TemporaryFile(dir=folder)
