"""The reference of a base that stays on the hub: the same numbers, and nothing is kept."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.support import hub as hubs
from tests.support import scored_models
from tests.validate.conftest import Trained
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import ModelSettings
from toolkit.core.output_settings import ExportSettings
from toolkit.model import base_choice, hub_pieces, hub_shards
from toolkit.validate import reference
from toolkit.validate.layers import open_trained

LABEL = "owner/model"


@pytest.fixture
def hub(made: scored_models.World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[hubs.Hub]:
    shutil.copytree(made.base.folder, tmp_path / "hub")
    with hubs.serving(tmp_path / "hub") as served:
        hubs.use(served, tmp_path, monkeypatch)
        yield served


def left(tmp_path: Path) -> list[Path]:
    caches = [*(tmp_path / "hf").rglob("*"), *(tmp_path / "cache").rglob("*")]
    return [path for path in caches if path.suffix == ".safetensors" or path.name.startswith(".pieces")]


@pytest.mark.slow
@pytest.mark.parametrize("noted", [True, False])
def test_the_numbers_are_those_of_the_base_on_the_disk(
    hub: hubs.Hub, made: scored_models.World, trained: Trained, tmp_path: Path, noted: bool
) -> None:
    """Whether an export has checked the shards before (`noted`) or this is the first to read them."""
    source = hub_shards.open_shards(LABEL)
    if noted:
        for shard in source.shards.values():
            assert len(list(hub_pieces.pieces(source, shard))) > 1
    hub.asked.clear()
    layers = open_trained(source.folder, made.folder.adapter, source)
    with reference.measured(layers, trained.records[:4], made.folder.path) as found:
        assert np.array_equal(found.nll, trained.reference.nll)
        assert np.array_equal(found.base_nll, trained.reference.base_nll)
        assert np.allclose(found.logits[0:9], trained.reference.logits[0:9], atol=1e-5)
        assert left(tmp_path) == []
    size = sum(path.stat().st_size for path in hub.folder.glob("*.safetensors"))
    fetched = sum(count for _, _, count in hub.asked)
    assert fetched < (1.5 if noted else 2.5) * size, "each layer once, the head and the embedding not much more often"


def test_a_weight_that_is_not_the_one_that_was_checked_is_refused(
    hub: hubs.Hub, made: scored_models.World, trained: Trained
) -> None:
    source = hub_shards.open_shards(LABEL)
    for shard in source.shards.values():
        for _ in hub_pieces.pieces(source, shard):
            pass
    hub.fault = lambda name, start, body: bytes([body[0] ^ 1]) + body[1:]
    layers = open_trained(source.folder, made.folder.adapter, source)
    with (
        pytest.raises(ToolkitError, match="fetched with another hash than before"),
        reference.measured(layers, trained.records[:1], made.folder.path),
    ):
        pass


def test_validation_streams_where_the_disk_is_short(
    hub: hubs.Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=1000))
    found, shards = base_choice.choose_base(ModelSettings(base=LABEL), ExportSettings())
    assert shards is not None and found.folder == shards.folder and found.commit == hubs.COMMIT
    assert left(tmp_path) == []
