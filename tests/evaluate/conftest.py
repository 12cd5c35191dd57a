from collections.abc import Iterator

import pytest

from tests.support import scored_models, threads
from toolkit.evaluate.bench import Bench


@pytest.fixture(autouse=True, scope="package")
def in_one_thread() -> Iterator[None]:
    with threads.one_thread():
        yield


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> scored_models.World:
    """A run with base, adapter, held-out rows, and the files F32, F16 and Q8_0."""
    return scored_models.world(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="package")
def bench(made: scored_models.World) -> Iterator[Bench]:
    found = Bench(made.config, made.folder, made.base)
    yield found
    found.close()
