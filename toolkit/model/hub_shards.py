"""A hub's base that is never here whole: a piece of a shard is fetched, used and deleted, and every hash is checked.

The folder of such a base has its configuration, its tokenizer and the beginning of each shard (`NAME.header`), which
says what the shard holds. Shards that the hub's own cache has are links to it: they are read there and never deleted.
"""

import contextlib
import hashlib
import json
import os
import struct
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from toolkit.core import console, places
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import clear_parts, locked_folder, writing
from toolkit.core.parsing import read_json, read_json_or_nothing
from toolkit.formats.checkpoint import HEADER, INDEX, SINGLE
from toolkit.formats.names import visible
from toolkit.formats.safetensors_header import AGAIN, LONGEST_HEADER, TensorInfo, read_header
from toolkit.model import base
from toolkit.model.hub_range import ATTEMPTS, HubShards, Shard, fetch

PIECE = 1 << 27  # bytes that are fetched at once, or one tensor where that is larger
CHUNK = 1 << 20
DIGESTS = "digests.json"


def open_shards(label: str, revision: str = "") -> HubShards:
    """Fetch a hub base's configuration, tokenizer and shard headers, and learn its shards' sizes and hashes.

    Raises ToolkitError if the repository has no safetensors, states no hash for one, or a header is damaged.
    """
    from huggingface_hub import HfApi, constants, hf_hub_download

    small = base.resolve(label, revision, weights=False)
    found = HfApi().model_info(
        label, revision=small.commit, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
    )
    there = {file.rfilename: file for file in found.siblings or []}
    names = [SINGLE] if SINGLE in there else []
    if not names and INDEX in there:
        index = Path(hf_hub_download(label, INDEX, revision=small.commit))
        stated = read_json(index, AGAIN).get("weight_map")
        names = list(dict.fromkeys(map(str, stated.values()))) if isinstance(stated, dict) else []
    if not names or any(Path(name).name != name or name not in there for name in names):
        raise ToolkitError(f"the hub's repository `{label}` has no complete safetensors", exit_code=MISSING)
    folder = _folder_of(label, small.commit)
    clear_parts(folder.glob(".pieces.*.part"), [])
    shards: dict[str, Shard] = {}
    cached = {name: base.cached_file(label, small.commit, name) for name in names}
    for name in names:
        if cached[name] is None:
            shards[name] = _described(label, there[name])
    made = HubShards(label, small.commit, folder, shards)
    for path in (*small.folder.iterdir(), *(path for path in cached.values() if path)):
        if path.is_file() and (path.name in names or path.suffix != ".safetensors"):
            _link(folder / path.name, path)
    for shard in shards.values():
        (folder / shard.name).unlink(missing_ok=True)  # a link to a cache that was emptied
        _fetch_header(made, shard)
    return made


def with_beginning(label: str, revision: str, small: Path) -> Path:
    """Return a folder with the `small` files of a hub base, and the beginning of its weights if they are one file.

    `small` itself where an index says what the weights are, or where the hub does not answer. Raises ToolkitError for a
    header that is damaged.
    """
    from huggingface_hub import HfApi, constants

    if (small / INDEX).is_file() or (small / SINGLE).is_file():
        return small
    try:
        found = HfApi().model_info(
            label, revision=revision or None, files_metadata=True, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT
        )
        file = next((each for each in found.siblings or [] if each.rfilename == SINGLE), None)
        if file is None or not file.size:
            return small
        made = HubShards(label, small.name, _folder_of(label, small.name), {})
        for path in small.iterdir():
            if path.is_file():
                _link(made.folder / path.name, path)
        _fetch_header(made, _described(label, file), attempts=2)
    except ToolkitError as exc:
        if exc.exit_code != MISSING:
            raise
        return small
    except Exception:  # no access, no network, a server in the way: each has its own class
        return small
    return made.folder


def _folder_of(label: str, commit: str) -> Path:
    folder = places.cache_folder() / "streamed" / f"{label.replace('/', '--')}-{commit[:16]}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _described(label: str, file: Any) -> Shard:
    digest = file.lfs.sha256 if file.lfs else file.blob_id
    if not digest or file.size is None:
        raise ToolkitError(
            f"the hub states no hash for `{file.rfilename}` of `{label}`, so it cannot be checked in pieces",
            hint="download it whole with `--set export.stream_base=false`",
            exit_code=MISSING,
        )
    return Shard(file.rfilename, file.size, digest, git=not file.lfs)


def _link(link: Path, target: Path) -> None:
    if link.is_symlink() and link.resolve() == target.resolve():
        return
    fresh = link.with_name(f".{link.name}.link")
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(target.resolve())
    fresh.replace(link)


def _fetch_header(source: HubShards, shard: Shard, attempts: int = ATTEMPTS) -> None:
    """Fetch a shard's beginning, and check that its tensors fill the size that the hub states."""
    place = source.folder / f"{shard.name}{HEADER}"
    if not place.is_file():
        begin = bytearray()
        fetch(source, shard, 0, 8, begin.extend, attempts=attempts)
        (length,) = struct.unpack("<Q", begin)
        if length > min(LONGEST_HEADER, shard.size - 8):
            raise ToolkitError(f"`{shard.name}` of `{source.label}` states a header of {length} bytes", hint=AGAIN)
        fetch(source, shard, 8, 8 + length, begin.extend, attempts=attempts)
        with writing(place) as file:
            file.write(begin)
    try:
        ends = [tensor.offset + tensor.size for tensor in _tensors(source, shard)]
    except ToolkitError:
        place.unlink()
        raise
    if max(ends, default=place.stat().st_size) != shard.size:
        place.unlink()
        raise ToolkitError(
            f"`{shard.name}` of `{source.label}` ends at another byte than its header says: {shard.size:,}", hint=AGAIN
        )


def _tensors(source: HubShards, shard: Shard) -> list[TensorInfo]:
    """Return a shard's tensors in the order of their bytes."""
    found = read_header(source.folder / f"{shard.name}{HEADER}", of=source.folder / shard.name)
    return sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.size))


def order(source: HubShards) -> list[Shard]:
    """Return the shards with the largest tensors first: the results take the least room then."""
    largest = {
        name: max((each.size for each in _tensors(source, shard)), default=0) for name, shard in source.shards.items()
    }
    return sorted(source.shards.values(), key=lambda shard: -largest[shard.name])


def pieces(source: HubShards, shard: Shard) -> Iterator[dict[str, TensorInfo]]:
    """Yield a shard's tensors, some at a time, in files that are deleted when the next ones are asked for.

    The next piece is fetched meanwhile. After the last one the hash of all bytes is compared with the hub's, and the
    hash of each tensor is noted. Raises ToolkitError if they differ or the hub does not answer.
    """
    groups: list[list[TensorInfo]] = []
    for tensor in _tensors(source, shard):
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
