import os

import pytest

from toolkit import kernels


@pytest.fixture(scope="session")
def library() -> kernels.Library:
    found = kernels.opened()
    if found is None:
        message = "the kernels are not compiled: python setup.py build_ext --inplace"
        if os.environ.get("CI") == "true":
            pytest.fail(message)
        pytest.skip(message)
    return found
