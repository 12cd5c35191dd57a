"""What `data.source` names: files by path or glob, data sets of the hub, MedQuAD, or a list of them."""

import glob
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.input_settings import MEDQUAD_CSV, DataSettings
from toolkit.formats.names import first_names
from toolkit.prepare.documents import documents_in
from toolkit.prepare.hub_data import PREFIX, downloaded_place, fetch_data_set, is_local, local_files, parse_name
from toolkit.prepare.medquad import fetch_full, fetch_medquad, full_place

SHOWN = 5  # names in one line


@dataclass(frozen=True)
class Source:
    """One source of rows: a file, a sheet of a workbook, a folder of MedQuAD's documents.

    From the `hub`: a folder in its form, of which `part` names the split.
    """

    path: Path
    part: str = ""
    hub: bool = False

    def files(self) -> list[Path]:
        """Return the files whose change makes it another source."""
        if self.hub:
            return local_files(self.path)
        return documents_in(self.path) if self.path.is_dir() else [self.path]


def find_sources(settings: DataSettings, *, gone: bool = False) -> list[Source]:
    """Return the sources that `data.source` names, each once, in its order; those of a glob by name.

    Nothing is downloaded: MedQuAD may not be there yet. Raises ToolkitError (exit 3) where a file is missing or a glob
    matches none; with `gone` files may be missing, as where a run goes on without its data: a glob then stands for
    those that it matched.
    """
    found = [source for name in settings.sources for source in _named(name, gone)]
    once: dict[tuple[Path, str], Source] = {}
    for source in found:
        once.setdefault((source.path.resolve(), source.part), source)
    return list(once.values())


def locate(settings: DataSettings, *, offline: bool) -> list[Source]:
    """Return the sources as `find_sources` does, after downloading those that `data.source` names and are not here.

    Raises ToolkitError (exit 3) where the network is forbidden or fails.
    """
    if "medquad" in settings.sources:
        fetch_medquad(offline=offline)
    if "medquad-full" in settings.sources:
        fetch_full(offline=offline)
    for name in settings.sources:
        if name.startswith(PREFIX):
            fetch_data_set(name, offline=offline)
    return find_sources(settings)


def _named(name: str, gone: bool) -> Iterator[Source]:
    if name in ("medquad", "medquad-full"):
        yield Source(MEDQUAD_CSV if name == "medquad" else full_place())
        return
    if name.startswith(PREFIX):
        try:
            found, split = parse_name(name)
        except ToolkitError:  # a folder of another machine has no such name
            if not gone:
                raise
            yield Source(Path(name))
            return
        place = downloaded_place(found, split)
        yield Source(Path(found).expanduser(), split, hub=True) if is_local(found) else Source(place)
        return
    path = Path(name).expanduser()
    book, mark, sheet = name.rpartition("#")
    if mark and not path.exists() and Path(book).expanduser().is_file():
        yield Source(Path(book).expanduser(), sheet)
        return
    if path.exists() or not glob.has_magic(name):
        yield Source(path if gone and not path.exists() else check_file(path))
        return
    matches = [Path(match) for match in sorted(glob.glob(str(path), recursive=True))]  # noqa: PTH207  (no hidden files)
    files = [match for match in matches if not match.is_dir()]
    if not matches and gone:
        yield Source(path)
    elif not files:
        raise _no_match(name, path, matches)
    for file in files:
        yield Source(check_file(file))  # a link may lead nowhere


def _no_match(name: str, path: Path, folders: list[Path]) -> ToolkitError:
    """Say what is there instead of what a glob looks for."""
    there = next(parent for parent in path.parents if not glob.has_magic(str(parent)))
    if folders:
        found = f"it matches only folders: {first_names([str(one) for one in folders], SHOWN)}"
    elif not there.is_dir():
        found = f"there is no folder `{there}`"
    else:
        names = sorted(one.name + "/" * one.is_dir() for one in there.iterdir())
        found = f"`{there}` holds {first_names(names, SHOWN) or 'nothing'}"
    return ToolkitError(
        f"no data file matches `{name}`: {found}",
        hint="correct the pattern in `data.source`: `*` stands for any characters, `**/` for folders at any depth",
        exit_code=MISSING,
    )


def check_file(path: Path) -> Path:
    """Return the path if it is a file, or a folder of XML documents; raises ToolkitError otherwise.

    Exit 3 if there is nothing.
    """
    if path.is_dir() and not documents_in(path):
        raise ToolkitError(
            f"`{path}` is a folder, not a data file",
            hint=f"name the file itself with `--set data.source=FILE`, or several, such as {path}/*.csv",
        )
    if not path.exists():
        raise ToolkitError(
            f"there is no data file `{path}`",
            hint='check `data.source`: a path from the current folder, a list (["a.csv", "b.csv"]), or "medquad"',
            exit_code=MISSING,
        )
    if not path.is_file() and not path.is_dir():
        raise ToolkitError(f"`{path}` is not a regular file", hint="copy its content into a file first")
    return path
