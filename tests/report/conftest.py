from pathlib import Path

import pytest

from tests.support import reported


@pytest.fixture
def run(tmp_path: Path) -> reported.Reported:
    """A run folder with everything that a report reads; change it as you like."""
    return reported.made(tmp_path)
