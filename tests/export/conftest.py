"""Real small models for the tests that damage them."""

import shutil
from pathlib import Path

import pytest

from tests.support import models
from tests.support.damage import targets


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole base, the same in shards, and an adapter of it."""
    folder = tmp_path_factory.mktemp("originals")
    base = models.save_model(folder / "base")
    models.save_model(folder / "sharded", shard="500KB")
    models.save_adapter(folder / "adapter", base)
    return folder


@pytest.fixture
def work(originals: Path, tmp_path: Path) -> Path:
    """Copies of them to damage, and two files of a former export."""
    shutil.copytree(originals, tmp_path / "work")
    (tmp_path / "work" / "out").mkdir()
    for path in targets(tmp_path / "work").values():
        path.write_bytes(b"former")
    return tmp_path / "work"
