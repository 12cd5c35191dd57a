from collections.abc import Iterator

import pytest
import torch

from tests.support import scored_models
from toolkit.evaluate.bench import Bench


@pytest.fixture(autouse=True, scope="package")
def one_thread() -> Iterator[None]:
    """A second thread costs more than it gives on models this small, most of all on a busy machine."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(scope="package")
def made(tmp_path_factory: pytest.TempPathFactory) -> scored_models.World:
    """A run with base, adapter, held-out rows, and the files F32, F16 and Q8_0."""
    return scored_models.world(tmp_path_factory.mktemp("evaluate"))


@pytest.fixture(scope="package")
def bench(made: scored_models.World) -> Iterator[Bench]:
    found = Bench(made.config, made.folder, made.base)
    yield found
    found.close()
