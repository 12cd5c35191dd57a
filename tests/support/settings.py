"""What is wrong with settings, as a user is told."""

from typing import Any

import pytest

from toolkit.core import config_file
from toolkit.core.errors import USAGE, ToolkitError


def problems(values: dict[str, Any], *overrides: str) -> str:
    with pytest.raises(ToolkitError) as caught:
        config_file.build(values, overrides)
    assert caught.value.exit_code == USAGE
    return caught.value.message
