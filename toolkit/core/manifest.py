"""The manifest of a run: what each stage read and wrote."""

import contextlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of, write_text
from toolkit.core.parsing import LARGEST_JSON, parse_json, read_bounded
from toolkit.core.run_folder import RunFolder
from toolkit.core.setting_changes import present_names
from toolkit.core.streams import printable

MANIFEST_VERSION = 1


@dataclass(frozen=True)
class Outcome:
    """What a stage returns when it succeeded: the files it wrote and its headline figures.

    `warning` says what is wrong with the result in spite of that; `status` repeats it until the stage runs again.
    """

    outputs: list[Path]
    figures: dict[str, Any]
    warning: str = ""


class FileRecord(BaseModel):
    """One file as it was when a stage ended."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    path: str
    """Path: relative to the run's folder if inside, else as given. Bytes that are not UTF-8 are written as \\xNN."""
    size: int
    """Bytes."""
    mtime_ns: int
    """Time stamp, in nanoseconds."""
    sha256: str
    """SHA-256, hexadecimal."""


class StageRecord(BaseModel):
    """What one stage did: the settings it used, what it read and wrote, and its headline figures."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    settings: dict[str, Any]
    """Settings that decide the result, as `section.key`."""
    inputs: list[FileRecord]
    """Files that it read."""
    outputs: list[FileRecord]
    """Files that it wrote."""
    versions: dict[str, str]
    """Versions of Python and the libraries."""
    seconds: float
    """Duration."""
    finished: str
    """When it ended (ISO 8601, with the offset from UTC)."""
    figures: dict[str, Any]
    """Headline figures, which depend on the stage; `toolkit STAGE --json` prints the same."""
    failure: str = ""
    """Set where the stage wrote its results and they say no, for example a quantization over its bound."""
    warning: str = ""
    """Set where the results are usable but probably not wanted, for example a model that learned nothing."""

    @field_validator("settings")
    @classmethod
    def _by_present_names(cls, value: dict[str, Any]) -> dict[str, Any]:
        return present_names(value)


class Manifest(BaseModel):
    """All records of a run."""

    model_config = ConfigDict(use_attribute_docstrings=True)

    version: int = MANIFEST_VERSION
    """Version of this format."""
    run_id: str
    """Random name of the run; it stays when the folder is renamed or copied."""
    stages: dict[str, StageRecord] = {}
    """By the stage's name."""
    pages: list[FileRecord] = []
    """The page and the model card as they were written last."""

    def files(self) -> list[FileRecord]:
        """Return every file that a stage has read or written, whose hashes need not be taken again."""
        return [file for record in self.stages.values() for file in (*record.inputs, *record.outputs)]


def read_manifest(folder: RunFolder) -> Manifest:
    """Read the manifest, or start an empty one with a new run id; raises ToolkitError if it is damaged."""
    try:
        return Manifest.model_validate(parse_json(read_bounded(folder.manifest, LARGEST_JSON)))
    except FileNotFoundError:
        return Manifest(run_id=uuid.uuid4().hex)
    except ValidationError as exc:
        first = exc.errors()[0]
        raise _damaged(folder, f"{'.'.join(map(str, first['loc'])) or 'all of it'}: {first['msg']}") from None
    except ValueError as exc:
        raise _damaged(folder, str(exc)) from None


def _damaged(folder: RunFolder, reason: str) -> ToolkitError:
    return ToolkitError(
        f"`{folder.manifest}` is damaged: {reason}", hint="move it away; the stages then run again with --force"
    )


def write_manifest(folder: RunFolder, manifest: Manifest) -> None:
    """Write the manifest whole or not at all."""
    write_text(folder.manifest, manifest.model_dump_json(indent=1) + "\n")


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def record_file(path: Path, folder: RunFolder, known: Iterable[FileRecord] = ()) -> FileRecord:
    """Describe a file; its hash is taken from `known` where path, size and time stamp are the same.

    A path inside the run folder is recorded relative to it, so that the folder can be moved.
    """
    stat = path.stat()
    name = path_name(path, folder)
    for old in known:
        if (old.path, old.size, old.mtime_ns) == (name, stat.st_size, stat.st_mtime_ns):
            return old
    return FileRecord(path=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_of(path))


def path_name(path: Path, folder: RunFolder) -> str:
    """Return how the manifest names a path: relative to the run folder if inside, else as it was given.

    Bytes of a name that are not UTF-8 are written as \\xNN.
    """
    try:
        name = path.resolve().relative_to(folder.path.resolve()).as_posix()
    except ValueError:
        name = path.as_posix()
    return printable(name)
