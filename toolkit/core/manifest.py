"""The manifest of a run: what each stage read and wrote, and whether that is still so."""

import contextlib
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError, field_validator

from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of, write_text
from toolkit.core.parsing import LARGEST_JSON, parse_json, read_bounded
from toolkit.core.run_folder import RunFolder
from toolkit.core.setting_changes import changed_settings, present_names
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


def why_stale(
    record: StageRecord | None, folder: RunFolder, settings: dict[str, Any], inputs: list[Path], outputs: list[Path]
) -> str:
    """Say why a stage must run again, or return an empty string if it is fresh.

    Unchanged size and time stamp count as unchanged; otherwise the SHA-256 decides. A run's folder may be continued on
    another machine: an input outside of it may be gone, or have another path with the same name and content; `inputs`
    then has a file, folder or pattern that is not there.
    """
    if record is None:
        return "not run"
    if record.failure:
        return record.failure
    changed = changed_settings(record.settings, settings)
    if changed:
        return "settings changed: " + ", ".join(changed)
    found = _found_again(record, folder, inputs)
    absent, gone = _left_behind(record, folder, inputs, found)
    known = {file.path for file in [*found.values(), *gone]}
    parted = {path_name(path, folder) for path in {*inputs} - {*found} - {*absent}}
    parted |= {file.path for file in record.inputs if file.path not in known}
    if parted:
        return "inputs changed: " + ", ".join(sorted(parted))
    for path, old in found.items():
        if not (_same(path, old) or (_outside(path, folder) and not path.exists())):
            return f"input changed: {path_name(path, folder)}"
    written = {file.path for file in record.outputs}
    for path in outputs:
        if path_name(path, folder) not in written:
            return f"output missing: {path_name(path, folder)}"
    for file in record.outputs:
        if not (folder.path / file.path).is_file():
            return f"output missing: {file.path}"
        if not _same(folder.path / file.path, file):
            return f"output changed: {file.path}"
    return ""


def _found_again(record: StageRecord, folder: RunFolder, inputs: list[Path]) -> dict[Path, FileRecord]:
    """Return the inputs with what is recorded of each; one outside the run's folder may have been moved."""
    left = {file.path: file for file in record.inputs}
    found = {path: left.pop(path_name(path, folder)) for path in inputs if path_name(path, folder) in left}
    for path in inputs:
        if path not in found and _outside(path, folder):
            alike = [old for old in left.values() if Path(old.path).name == path.name and _same(path, old)]
            if alike:
                found[path] = left.pop(alike[0].path)
    return found


def _left_behind(
    record: StageRecord, folder: RunFolder, inputs: list[Path], found: Mapping[Path, FileRecord]
) -> tuple[list[Path], list[FileRecord]]:
    """Return the inputs outside the run's folder that are not there, and the records that these may stand for.

    A run that was moved alone has no file of a pattern, of a folder, or of a home that has another path here. A file
    is not left behind where others of its folder are there: it was removed.
    """
    absent = [path for path in {*inputs} - {*found} if _outside(path, folder) and not path.exists()]
    if not absent:
        return [], []
    places = {path.parent for path in inputs if path.exists()}
    left = [file for file in record.inputs if file not in found.values()]
    return absent, [
        file
        for file in left
        if (path := Path(file.path)).parent not in places and _outside(path, folder) and not path.exists()
    ]


def _outside(path: Path, folder: RunFolder) -> bool:
    return not path.resolve().is_relative_to(folder.path.resolve())


def seen_again(record: StageRecord, folder: RunFolder, inputs: list[Path]) -> StageRecord:
    """Return the record of a fresh stage with the paths and time stamps of now: copied files are hashed only once."""

    def now(path: Path, old: FileRecord) -> FileRecord:
        there = path.stat().st_mtime_ns if path.exists() else old.mtime_ns
        return old.model_copy(update={"path": path_name(path, folder), "mtime_ns": there})

    found = _found_again(record, folder, inputs)
    read = [now(path, old) for path, old in found.items()]
    read += _left_behind(record, folder, inputs, found)[1]
    return record.model_copy(
        update={"inputs": read, "outputs": [now(folder.path / old.path, old) for old in record.outputs]}
    )


def foreign_outputs(
    record: StageRecord | None, folder: RunFolder, outputs: list[Path], noted: Iterable[FileRecord] = ()
) -> list[str]:
    """List files that a stage would overwrite although it did not write them as they are now.

    `noted` are those that it wrote, or was about to write, when it did not come to its end.
    """
    own = [*(record.outputs if record else []), *noted]
    foreign = []
    for path in outputs:
        name = path_name(path, folder)
        if path.is_file() and not any(_same(path, file) for file in own if file.path == name):
            foreign.append(name)
    return foreign


def _same(path: Path, old: FileRecord) -> bool:
    try:
        stat = path.stat()
    except OSError:
        return False
    if (stat.st_size, stat.st_mtime_ns) == (old.size, old.mtime_ns):
        return True
    return stat.st_size == old.size and sha256_of(path) == old.sha256
