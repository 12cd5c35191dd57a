"""Where an export's base comes from: this machine, a download that stays, or the hub piece by piece."""

import os
from collections.abc import Mapping
from pathlib import Path

from toolkit.core import console, hardware
from toolkit.core.console import size
from toolkit.core.input_settings import ModelSettings
from toolkit.core.output_settings import ExportSettings
from toolkit.export import streaming
from toolkit.export.planning import plan
from toolkit.model import base, hub_shards, merge_base
from toolkit.model.base import Base
from toolkit.model.hub_range import HubShards
from toolkit.model.model_config import is_four_bit

RESERVE = 1_000_000_000  # bytes that a download must leave free besides the results


def choose_base(
    model: ModelSettings, export: ExportSettings, adapter: Path | None, targets: Mapping[str, Path]
) -> tuple[Base, HubShards | None]:
    """Return the base to merge into, and its shards where it is to be read from the hub piece by piece.

    `export.stream_base` decides; "auto" streams where the disk has no room for base and results together, and goes on
    with an export that was streamed before. Raises what `merge_base.resolve` and `open_shards` raise.
    """
    label = base.merge_label(model, export)
    revision = base.revision_of(label, model)
    offline = os.environ.get("HF_HUB_OFFLINE") == "1"
    cannot = export.imatrix or offline or base.local_path(label) is not None or base.wholly_cached(label, revision)
    if export.stream_base is False or cannot:
        return merge_base.resolve(model, export), None
    source = hub_shards.open_shards(label, revision)
    streamed = Base(label, source.folder, source.commit)
    if not source.shards or is_four_bit(source.folder):  # quantized tensors are read in several parts
        return merge_base.resolve(model, export), None
    merge_base.check_merge_base(streamed, export)
    if export.stream_base == "auto" and not streaming.begun(targets.values()):
        results = plan(source.folder, adapter, list(targets), overrides=export.overrides).bytes
        short = _short(source, {targets[name]: count for name, count in results.items()})
        if not short:
            return merge_base.resolve(model, export), None
        console.info(f"base model: {label} is read from the hub piece by piece and not kept, because {short}")
    else:
        console.info(f"base model: {label} is read from the hub piece by piece and not kept")
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
            return f"base and results take {size(need)} and {size(free)} are free"
    return ""
