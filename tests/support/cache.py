"""What several tests make alike is made once a session, by whichever worker needs it first, and copied to each."""

import fcntl
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

PLACE = "TOOLKIT_TEST_CACHE"  # set by the session's first process, so that its workers share the folder


def begin() -> Path | None:
    """Make this session's folder; returns it where it is this process's to remove."""
    if PLACE in os.environ:
        return None
    os.environ[PLACE] = tempfile.mkdtemp(prefix="toolkit-tests-")
    return Path(os.environ[PLACE])


def place() -> Path:
    """Return this session's folder."""
    return Path(os.environ[PLACE])


def copied(folder: Path, build: Callable[[Path], object], *arguments: object) -> Path:
    """Copy what `build` makes of these arguments into `folder`; the copy is the caller's to damage.

    Arguments are known by their repr: where it says an address, nothing is found and all is made anew.
    """
    kept = place() / hashlib.sha256(repr((build.__module__, build.__qualname__, arguments)).encode()).hexdigest()[:24]
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            shutil.rmtree(part := kept.with_suffix(".part"), ignore_errors=True)
            build(part)
            part.rename(kept)
    shutil.copytree(kept, folder, dirs_exist_ok=True)
    return folder
