"""The folders outside of a run: caches and temporary files, each with the variable that moves it."""

import contextlib
import os
import tempfile
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of converted bases: `toolkit/` under XDG_CACHE_HOME, else under ~/.cache."""
    return _caches() / "toolkit"


def temporary_folder() -> Path:
    """Return the folder of large temporary files: TMPDIR, else `/var/tmp`, because `/tmp` is often in the memory.

    Raises FileNotFoundError where no such folder can be written.
    """
    usual = Path("/var/tmp")
    if not os.environ.get("TMPDIR") and os.access(usual, os.W_OK):
        return usual
    return Path(tempfile.gettempdir())


def _caches() -> Path:
    home = os.environ.get("XDG_CACHE_HOME")
    return Path(home) if home else Path.home() / ".cache"


def mover(path: Path) -> str:
    """Name the variable that moves the folder which holds a path, or would; empty for any other place.

    A folder above ours counts where it is the one that could not be made.
    """
    try:
        caches = _caches()
    except RuntimeError:  # no home folder
        return ""
    hub = Path(os.environ.get("HF_HOME") or caches / "huggingface")
    path, places = path.absolute(), {"XDG_CACHE_HOME": caches / "toolkit", "HF_HOME": hub}
    places |= {name: Path(value) for name in ("HF_HUB_CACHE", "TMPDIR") if (value := os.environ.get(name))}
    for name, place in places.items():
        place = place.absolute()
        if path == place or place in path.parents:
            return name
    with contextlib.suppress(FileNotFoundError):
        if path == temporary_folder().absolute():
            return "TMPDIR"
    for name, place in places.items():
        if path in place.absolute().parents and path not in (Path.cwd(), Path("/")) and not _writable(path):
            return name
    return ""


def _writable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK)
