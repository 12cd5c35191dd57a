"""The files that a stage is about to put in place, noted before each rename.

After a crash between the first rename and the manifest's, the next call recognises these files as the stage's own by
this note, and does the stage again without asking. Each stage of a run has its own note, `.STAGE.unfinished.json`.
"""

import contextlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from pydantic import ValidationError

from toolkit.core.errors import ToolkitError
from toolkit.core.files import before_rename, sha256_of, write_text
from toolkit.core.manifest import FileRecord, path_name
from toolkit.core.parsing import read_json
from toolkit.core.run_folder import RunFolder


@contextlib.contextmanager
def noting(folder: RunFolder, stage: str) -> Iterator[None]:
    """Note every file of the run folder that gets its name during the block: path, size, time stamp and hash."""

    def note(targets: Mapping[Path, Path]) -> None:
        found = [_described(target, part, folder) for target, part in targets.items() if _is_result(target, folder)]
        if found:
            text = json.dumps({"files": [file.model_dump() for file in [*noted(folder, stage), *found]]})
            write_text(_place(folder, stage), text + "\n")

    with before_rename(note):
        yield


def noted(folder: RunFolder, stage: str) -> list[FileRecord]:
    """Return what a stage that did not come to its end has put in place, or was about to."""
    try:
        values = read_json(_place(folder, stage)).get("files")
        return [FileRecord.model_validate(value) for value in values or []]
    except (OSError, ToolkitError, ValidationError, TypeError):
        return []


def settle(folder: RunFolder, stage: str) -> None:
    """Remove a stage's note, now that its results are recorded; one that stays does no harm."""
    with contextlib.suppress(OSError):
        _place(folder, stage).unlink(missing_ok=True)


def _place(folder: RunFolder, stage: str) -> Path:
    return folder.path / f".{stage}.unfinished.json"


def _is_result(target: Path, folder: RunFolder) -> bool:
    """Tell whether a file is in the run folder under its final name, not inside an unfinished folder."""
    try:
        inside = target.resolve().relative_to(folder.path.resolve())
    except ValueError:
        return False
    return not any(part.startswith(".") for part in inside.parts)


def _described(target: Path, part: Path, folder: RunFolder) -> FileRecord:
    stat = part.stat()
    name = path_name(target, folder)
    return FileRecord(path=name, size=stat.st_size, mtime_ns=stat.st_mtime_ns, sha256=sha256_of(part))
