"""What all sections of the settings share."""

import os
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
)

LONGEST_NAME = 255  # bytes of a file's or folder's name; no usual file system has longer ones
LONGEST_PATH = 4095  # Linux's


def usable_path(value: str) -> str:
    """Return a path that a file system can hold; raises ValueError where a name in it is too long."""
    longest = max(len(os.fsencode(part)) for part in value.split("/"))
    if longest > LONGEST_NAME:
        raise ValueError(f"a name in it has {longest:,} bytes, and a file's name has {LONGEST_NAME} at most")
    if (length := len(os.fsencode(value))) > LONGEST_PATH:
        raise ValueError(f"it has {length:,} bytes, and a path has {LONGEST_PATH:,} at most")
    return value


# A path, or the name of something that is stored under it.
PathText = Annotated[str, AfterValidator(usable_path)]


class Section(BaseModel):
    """What all sections share: strict types, finite numbers, no unknown keys, nothing changes after loading."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )
