"""Whether what a stage read and wrote is still as its record says."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from toolkit.core.files import sha256_of
from toolkit.core.manifest import FileRecord, StageRecord, path_name
from toolkit.core.run_folder import RunFolder
from toolkit.core.setting_changes import changed_settings


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
