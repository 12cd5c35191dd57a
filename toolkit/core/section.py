"""What all sections of the settings share."""

from pydantic import (
    BaseModel,
    ConfigDict,
)


class Section(BaseModel):
    """What all sections share: strict types, no unknown keys, nothing changes after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)
