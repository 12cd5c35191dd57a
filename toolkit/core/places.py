"""The folders outside of a run: caches and temporary files, each with the variable that moves it."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """Return the folder of converted bases: `toolkit/` under XDG_CACHE_HOME, else under ~/.cache."""
    return _caches() / "toolkit"


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
    for name, place in places.items():
        if path in place.absolute().parents and path not in (Path.cwd(), Path("/")) and not _writable(path):
            return name
    return ""


def _writable(path: Path) -> bool:
    return path.is_dir() and os.access(path, os.W_OK)
