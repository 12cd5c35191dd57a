"""Several small files that change together or not at all, even if the process dies or a write fails.

What was there is kept in a folder `.NAME.undo`, with a list of the names, from before the first rename until after the
last. Its own renames, to that name and away from it, are the two moments that count.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.core.files import announce, lock, naming, to_disk
from toolkit.core.parsing import read_json

LIST = "names.json"


def write_together(texts: Mapping[Path, str]) -> None:
    """Write text files (UTF-8) of one folder, which exists: all of them, or none."""
    targets = [*texts]
    undo = targets[0].with_name(f".{targets[0].name}.undo")
    kept = undo.with_name(f"{undo.name}.done.part")
    put_back(undo)
    with contextlib.ExitStack() as stack:
        parts = {path: _written(path, text, stack) for path, text in texts.items()}
        announce(parts)
        _keep(targets, undo)
        try:
            for path, part in parts.items():
                with naming(path, part):
                    part.replace(path)
            shutil.rmtree(kept, ignore_errors=True)
            with naming(targets[0], undo):
                undo.replace(kept)
        except BaseException:
            with contextlib.suppress(OSError):
                put_back(undo)
            raise
        shutil.rmtree(kept, ignore_errors=True)


def put_back(undo: Path) -> None:
    """Restore what `.NAME.undo` keeps, if it is there: its files were not all replaced."""
    if not undo.is_dir():
        return
    try:
        was_there = read_json(undo / LIST)
    except ToolkitError:  # all was restored, and the folder was about to be removed
        was_there = {}
    for name, there in was_there.items():
        kept, target = undo / name, undo.with_name(name)
        if not there:
            target.unlink(missing_ok=True)
        elif kept.exists():
            kept.replace(target)
    (undo / LIST).unlink(missing_ok=True)
    shutil.rmtree(undo, ignore_errors=True)


def _written(path: Path, text: str, stack: contextlib.ExitStack) -> Path:
    """Write a temporary file next to `path`, whole and on the disk; it is removed at the end if it is still there."""
    with naming(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
        part = Path(name)
        stack.callback(_remove, part)
        with naming(path, part):
            file = stack.enter_context(os.fdopen(descriptor, "wb"))
            lock(file.fileno(), fcntl.LOCK_EX)
            file.write(text.encode("utf-8"))
            file.flush()
            os.fsync(file.fileno())
            part.chmod(0o644)
    return part


def _remove(part: Path) -> None:
    with contextlib.suppress(OSError):
        part.unlink(missing_ok=True)


def _keep(targets: list[Path], undo: Path) -> None:
    """Make `.NAME.undo`: a second name of each file that is there, or a copy, and the list of all names."""
    with naming(targets[0]):
        fresh = Path(tempfile.mkdtemp(dir=undo.parent, prefix=f"{undo.name}.", suffix=".part"))
    there = {path.name: path.exists() for path in targets}
    try:
        with naming(targets[0], fresh):
            for path in targets:
                if there[path.name]:
                    _second_name(path, fresh / path.name)
            (fresh / LIST).write_text(json.dumps(there), encoding="utf-8")
            to_disk(fresh / LIST)
            fresh.replace(undo)
    except BaseException:
        shutil.rmtree(fresh, ignore_errors=True)
        raise


def _second_name(path: Path, other: Path) -> None:
    try:
        other.hardlink_to(path)
    except OSError:  # a file system without links
        shutil.copy2(path, other)
