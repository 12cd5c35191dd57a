"""Where the base that is merged into comes from: this machine, a download that stays, or the hub piece by piece."""

from collections.abc import Callable, Mapping
from pathlib import Path

from toolkit.core import console, hardware
from toolkit.core.console import size
from toolkit.core.input_settings import ModelSettings
from toolkit.core.network import is_offline
from toolkit.core.output_settings import ExportSettings
from toolkit.model import base, hub_shards, merge_base
from toolkit.model.base import Base
from toolkit.model.hub_range import HubShards
from toolkit.model.model_config import is_four_bit

RESERVE = 1_000_000_000  # bytes that a download must leave free besides the results


def no_results(_: Path) -> Mapping[Path, int]:
    """Write nothing besides the base."""
    return {}


def choose_base(
    model: ModelSettings,
    export: ExportSettings,
    results: Callable[[Path], Mapping[Path, int]] = no_results,
    *,
    begun: bool = False,
) -> tuple[Base, HubShards | None]:
    """Return the base to merge into, and its shards where it is to be read from the hub piece by piece.

    `export.stream_base` decides; "auto" streams where the disk has no room for base and `results` together (their
    places and bytes, from the base's folder), and where streaming has `begun` before. Raises what `merge_base.resolve`
    and `open_shards` raise.
    """
    label = base.merge_label(model, export)
    revision = base.revision_of(label, model)
    cannot = export.imatrix or is_offline() or base.local_path(label) is not None or base.wholly_cached(label, revision)
    if export.stream_base is False or cannot:
        return merge_base.resolve(model, export), None
    source = hub_shards.open_shards(label, revision)
    streamed = Base(label, source.folder, source.commit)
    if not source.shards or is_four_bit(source.folder):  # a weight in 4 bits has several parts
        return merge_base.resolve(model, export), None
    merge_base.check_merge_base(streamed, export)
    why = ""
    if export.stream_base == "auto" and not begun:
        why = _short(source, results(source.folder))
        if not why:
            return merge_base.resolve(model, export), None
    console.info(f"base model: {label} is read from the hub piece by piece and not kept{why}")
    return streamed, source


def _short(source: HubShards, results: Mapping[Path, int]) -> str:
    """Say which disk has no room for the whole base and the results; empty where there is room."""
    from huggingface_hub.constants import HF_HUB_CACHE

    needs: dict[int, int] = {}
    places: dict[int, Path] = {}
    for path, count in ((Path(HF_HUB_CACHE), source.missing + RESERVE), *results.items()):
        system = hardware.file_system(path)
        needs[system] = needs.get(system, 0) + count
        places.setdefault(system, path)
    for system, need in needs.items():
        free = hardware.free_disk(places[system])
        if need > free:
            beside = " with the results" if results else ""
            return f": kept, it would need {size(need)} of disk{beside}, {size(free)} are free"
    return ""
