"""The base that an adapter is merged into, and the one it was trained on: often the same, or one of them in 4 bits."""

import contextlib
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import ModelSettings
from toolkit.core.manifest import StageRecord
from toolkit.core.output_settings import ExportSettings
from toolkit.model import base
from toolkit.model.model_config import is_four_bit


@dataclass(frozen=True)
class OtherBase:
    """Two bases of one adapter: its training base, and another that it is, or could be, merged into.

    One of them is merged into (the trained one where `merged_as_trained`); `folder` holds the weights of the other,
    None if they are not on this machine. `through` is a dtype if they must be taken through 4 bits from that
    dtype, as training did when it loaded them; else empty.
    """

    trained_on: str
    instead: str
    merged_as_trained: bool
    folder: Path | None
    through: str = ""

    @property
    def label(self) -> str:
        """The one that is not merged into."""
        return self.instead if self.merged_as_trained else self.trained_on


def resolve(model: ModelSettings, export: ExportSettings) -> base.Base:
    """Return the base to merge into, downloading or converting it if needed.

    Raises ToolkitError if it does not exist, or has 4 bits but 16 are required.
    """
    label = base.merge_label(model, export)
    found = base.resolve(label, base.revision_of(label, model))
    check_merge_base(found, export)
    return found


def other_files(model: ModelSettings, export: ExportSettings) -> list[Path]:
    """List the local files of the bases that an adapter may have besides the one it is merged into."""
    files: list[Path] = []
    for label in dict.fromkeys((model.base, base.sixteen_bit(model))):
        if label != base.merge_label(model, export):
            with contextlib.suppress(ToolkitError):  # it may be absent
                files += base.source_files(label)
    return files


def trained_label(model: ModelSettings, record: StageRecord | None) -> str:
    """Name the base that an adapter was trained on; a CPU takes the 16-bit namesake of a 4-bit repository."""
    on_cpu = record is not None and record.figures.get("device") == "cpu"
    return base.sixteen_bit(model) if on_cpu and model.base.endswith(base.FOUR_BIT) else model.base


def other(model: ModelSettings, export: ExportSettings, record: StageRecord | None) -> OtherBase | None:
    """Say which other base an adapter has besides the one it is merged into; None if there is only one.

    `record` is what training left in the manifest, None for an adapter from elsewhere. Nothing is downloaded.
    """
    into, trained = base.merge_label(model, export), trained_label(model, record)
    if trained != into:
        return OtherBase(trained, into, False, present(trained, model))
    folder = present(into, model)
    if record is not None and _quantized_at_load(record) and folder is not None and not is_four_bit(folder):
        through = "float16" if record.figures.get("precision") == "f16" else "bfloat16"
        return OtherBase(f"{into} in 4 bits", into, False, folder, through)
    instead = base.sixteen_bit(model)
    return None if instead == into else OtherBase(trained, instead, True, present(instead, model))


def _quantized_at_load(record: StageRecord) -> bool:
    return str(record.figures.get("device")).startswith("cuda") and bool(record.settings.get("model.load_in_4bit"))


def present(label: str, model: ModelSettings) -> Path | None:
    """Return the folder of a base on this machine, or None."""
    try:
        return base.present(label, base.revision_of(label, model))
    except ToolkitError:
        return None


def check_merge_base(found: base.Base, export: ExportSettings) -> None:
    """Raise ToolkitError if the 16-bit weights are required, but the base has 4 bits and no known 16-bit repository."""
    if export.merge_base == "16bit" and is_four_bit(found.folder):
        raise ToolkitError(
            f"the base `{found.label}` has 4-bit weights, and its name does not say where its 16-bit weights are",
            hint="name them with `--set model.base_16bit=DIR|ID`, or merge into the 4-bit ones with "
            "`--set export.merge_base=as-trained`",
        )
