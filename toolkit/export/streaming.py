"""An export whose base stays on the hub: each shard is fetched piece by piece, merged, quantized and deleted.

The results are written to hidden files next to their targets, every tensor at its place, because shards have another
order than GGUF. What a finished shard became is noted with its hashes: an interrupted export goes on with the next one.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from toolkit import __version__
from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import announce, sha256_of, write_text
from toolkit.core.input_settings import ModelSettings
from toolkit.core.output_settings import QUANTIZATIONS, ExportSettings
from toolkit.core.parsing import read_json_or_nothing
from toolkit.export.carry import carry
from toolkit.export.gpu_quantizer import GpuQuantizer
from toolkit.export.placed_file import PlacedFile
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.export.planning import ExportPlan, plan
from toolkit.formats.ggml_types import stored_size
from toolkit.formats.gguf_writer import padded
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model import base_choice, hub_pieces
from toolkit.model.base import Base
from toolkit.model.hub_range import HubShards

HERE = ""  # stands for the tensors that are on this machine: the adapter's, and shards of the hub's cache

Digests = dict[str, dict[str, str]]  # by quantization and tensor


@dataclass
class DoneShards:
    """What an export has done: by shard, the hash of every tensor in every file; `identity` is that of the export."""

    path: Path
    identity: str
    done: dict[str, Digests] = field(default_factory=dict)

    def add(self, shard: str, digests: Digests) -> None:
        """Note a finished shard."""
        self.done[shard] = digests
        write_text(self.path, json.dumps({"identity": self.identity, "done": self.done}) + "\n")


def part_of(target: Path) -> Path:
    """Return the hidden file in which a target grows."""
    return target.with_name(f".{target.name}.streamed")


def _state_path(targets: Iterable[Path]) -> Path:
    first = next(iter(targets))
    return first.with_name(f".{first.name}.streamed.json")


def begun(targets: Iterable[Path]) -> int:
    """Return the bytes on the disk of an interrupted export to these files; 0 where there is none."""
    targets = list(targets)
    if not _state_path(targets).is_file():
        return 0
    return sum(path.stat().st_blocks * 512 for path in map(part_of, targets) if path.is_file())


def discard(targets: Mapping[str, Path]) -> None:
    """Remove what an interrupted export to these files left, and to those of the same model's other quantizations."""
    for quantization, target in targets.items():
        names = {target.name}
        model = target.name.removesuffix(f"-{quantization}.gguf")
        if model != target.name:
            names |= {f"{model}-{other}.gguf" for other in QUANTIZATIONS}
        for path in (target.with_name(name) for name in names):
            part_of(path).unlink(missing_ok=True)
            _state_path([path]).unlink(missing_ok=True)


def base_of(
    model: ModelSettings, export: ExportSettings, adapter: Path | None, targets: Mapping[str, Path]
) -> tuple[Base, HubShards | None]:
    """Return the base to merge into for these files, and its shards where it is to be read from the hub in pieces."""

    def results(folder: Path) -> Mapping[Path, int]:
        sizes = plan(folder, adapter, list(targets), overrides=export.overrides).bytes
        return {targets[name]: count for name, count in sizes.items()}

    return base_choice.choose_base(model, export, results, begun=begun(targets.values()) > 0)


def identity(source: HubShards, adapter: Path | None, headers: Mapping[str, bytes]) -> str:
    """Return a hash of all that decides the files: base, adapter, the files' headers, and this program's version."""
    trained = sorted(adapter.glob("*.safetensors")) + sorted(adapter.glob("*.json")) if adapter else []
    parts = [
        __version__,
        source.label,
        source.commit,
        *(f"{shard.name} {shard.digest}" for shard in source.shards.values()),
    ]
    parts += [f"{path.name} {sha256_of(path)}" for path in trained]
    parts += [f"{name} {hashlib.sha256(header).hexdigest()}" for name, header in sorted(headers.items())]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def write_streamed(
    planned: ExportPlan,
    source: HubShards,
    adapter: Path | None,
    headers: Mapping[str, bytes],
    targets: Mapping[str, Path],
    gpu: GpuQuantizer,
    pool: ThreadPoolExecutor,
    check: Callable[[Path], None],
) -> dict[str, tuple[int, str]]:
    """Write all files and return their bytes and SHA-256; `check` sees each complete one before it gets its name.

    Raises ToolkitError for what the hub or the weights have wrong. What finished shards became is kept then.
    """
    state = _begin(DoneShards(_state_path(targets.values()), identity(source, adapter, headers)), targets)
    remote = {tensor.name: _is_remote(tensor, source) for tensor in planned.tensors}
    read = sum(tensor.stored.size for tensor in planned.tensors if tensor.stored)
    with ExitStack() as stack:
        files = {key: _open(planned, key, header, targets[key], stack) for key, header in headers.items()}
        _forget_damaged(state, planned, files)
        try:
            with console.progress("export", read, "B") as progress:
                done = sum(_size(planned, shard, remote) for shard in state.done)
                progress.skip_to(done)
                if HERE not in state.done:
                    chosen = [tensor for tensor in planned.tensors if not remote[tensor.name]]
                    carry(planned, chosen, {}, files, pool, gpu, progress)
                    state.add(HERE, {key: file.taken() for key, file in files.items()})
                for shard in hub_pieces.order(source):
                    if shard.name in state.done:
                        continue
                    for found in hub_pieces.pieces(source, shard):
                        chosen = [_local(tensor, found) for tensor in planned.tensors if remote[tensor.name]
                                  and tensor.stored and tensor.stored.name in found]  # fmt: skip
                        carry(planned, chosen, {}, files, pool, gpu, progress)
                    state.add(shard.name, {key: file.taken() for key, file in files.items()})
        except BaseException:
            _say_what_is_kept(state, source, targets)
            raise
        for file in files.values():
            check(file.part)
        figures = {key: (file.size, sha256_of(file.part)) for key, file in files.items()}
        announce({file.target: file.part for file in files.values()})
        for file in files.values():
            file.part.chmod(0o644)
            file.part.replace(file.target)
        state.path.unlink()
    return figures


def _begin(state: DoneShards, targets: Mapping[str, Path]) -> DoneShards:
    """Take over what an interrupted export with the same input left; remove what another one left."""
    found = read_json_or_nothing(state.path)
    done = found.get("done")
    if found.get("identity") == state.identity and isinstance(done, dict):
        state.done = done
        return state
    discard(targets)
    return state


def _forget_damaged(state: DoneShards, planned: ExportPlan, files: Mapping[str, PlacedFile]) -> None:
    """Let a shard be done again where a file does not hold what it became."""
    sizes = {
        (key, tensor.name): stored_size(tensor.types[key], tensor.shape) for tensor in planned.tensors for key in files
    }
    for shard, digests in list(state.done.items()):
        with suppress(KeyError, AttributeError):
            if all(
                file.holds(name, sizes[key, name], digest)
                for key, file in files.items()
                for name, digest in digests[key].items()
            ):
                continue
        console.warn(f"what {shard or 'the adapter'} became in the interrupted export is damaged: it is exported again")
        del state.done[shard]
    if state.done:
        console.info(f"the interrupted export continues: {sum(shard != HERE for shard in state.done)} shards are done")


def _open(planned: ExportPlan, quantization: str, header: bytes, target: Path, stack: ExitStack) -> PlacedFile:
    """Open a file in its whole length, with its header."""
    places, position = {}, len(header)
    for tensor in planned.tensors:
        places[tensor.name] = position
        position += padded(stored_size(tensor.types[quantization], tensor.shape))
    target.parent.mkdir(parents=True, exist_ok=True)
    file = PlacedFile(part_of(target), target, places, position)
    stack.callback(os.close, file.descriptor)
    try:
        fcntl.flock(file.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ToolkitError(
            f"another toolkit process is exporting to `{target}`", hint="wait for it to end, or name another place"
        ) from None
    os.ftruncate(file.descriptor, position)
    os.pwrite(file.descriptor, header, 0)
    return file


def _is_remote(tensor: PlannedTensor, source: HubShards) -> bool:
    stored = tensor.stored
    return stored is not None and stored.path.parent == source.folder and stored.path.name in source.shards


def _local(tensor: PlannedTensor, found: Mapping[str, TensorInfo]) -> PlannedTensor:
    assert tensor.stored is not None
    return replace(tensor, stored=found[tensor.stored.name])


def _size(planned: ExportPlan, shard: str, remote: Mapping[str, bool]) -> int:
    """Return the bytes that are read for a shard's tensors."""
    return sum(
        tensor.stored.size
        for tensor in planned.tensors
        if tensor.stored and (tensor.stored.path.name == shard if remote[tensor.name] else shard == HERE)
    )


def _say_what_is_kept(state: DoneShards, source: HubShards, targets: Mapping[str, Path]) -> None:
    done = sum(shard != HERE for shard in state.done)
    if not done:
        discard(targets)
        return
    console.info(
        f"{done} of {len(source.shards)} shards are done and kept: the same command continues with the next one"
    )


def same_on_hub(source: HubShards) -> Callable[[TensorInfo, TensorInfo], bool]:
    """Return what compares two tensors by their hashes, wherever they are."""

    def same(one: TensorInfo, other: TensorInfo) -> bool:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return hub_pieces.digest_of(source, one) == hub_pieces.digest_of(source, other)

    return same
