"""A base on the hub that is never downloaded completely: its small files, and the start of each shard.

The folder of such a base has its configuration, its tokenizer and the beginning of each shard (`NAME.header`), which
says what the shard holds. Shards that the hub's own cache has are links to it: they are read there and never deleted.
"""

import struct
from pathlib import Path
from typing import Any

from toolkit.core import places
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import clear_parts, writing
from toolkit.core.parsing import read_json
from toolkit.formats.checkpoint import HEADER, INDEX, SINGLE
from toolkit.formats.safetensors_header import AGAIN, LONGEST_HEADER, TensorInfo, read_header
from toolkit.model import base
from toolkit.model.hub_range import ATTEMPTS, HubShards, Shard, fetch


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
        ends = [tensor.offset + tensor.size for tensor in tensors_of(source, shard)]
    except ToolkitError:
        place.unlink()
        raise
    if max(ends, default=place.stat().st_size) != shard.size:
        place.unlink()
        raise ToolkitError(
            f"`{shard.name}` of `{source.label}` ends at another byte than its header says: {shard.size:,}", hint=AGAIN
        )


def tensors_of(source: HubShards, shard: Shard) -> list[TensorInfo]:
    """Return a shard's tensors in the order of their bytes."""
    found = read_header(source.folder / f"{shard.name}{HEADER}", of=source.folder / shard.name)
    return sorted(found.values(), key=lambda tensor: (tensor.offset, tensor.size))
