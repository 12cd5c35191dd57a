"""What a run's files say, as a page for people, as a model card, and beside another run."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.file_changes import foreign_outputs
from toolkit.core.files import write_text
from toolkit.core.manifest import FileRecord, Manifest, path_name, read_manifest, write_manifest
from toolkit.core.run_folder import RunFolder
from toolkit.core.together import write_together

if TYPE_CHECKING:  # what writes pages takes a quarter of a second to import, and validate needs words of it alone
    from toolkit.report.compare import BothRuns
    from toolkit.report.facts import Facts

__all__ = ["gather_run", "write_comparison", "write_pages"]


def write_pages(
    config: Config, folder: RunFolder, reasons: Mapping[str, str], *, force: bool = False
) -> tuple[list[Path], list[str]]:
    """Write `report.html`, and `README.md` once there is a report.json; return both, and the files that are damaged.

    `reasons` say of each stage why it must run again. A file that somebody else wrote or changed is left as it is
    without `force`: raises ToolkitError that names it, after the other one is written.
    """
    from toolkit.report.facts import gather
    from toolkit.report.model_card import model_card
    from toolkit.report.page import report_page

    manifest = read_manifest(folder)
    facts = gather(config, folder, manifest, reasons)
    texts = {folder.page: report_page(facts)}
    if facts.report is not None:
        texts[folder.model_card] = model_card(facts, facts.report)
    theirs = [] if force else _theirs(manifest, folder, [*texts])
    texts = {path: text for path, text in texts.items() if path not in theirs}
    _remember(manifest, folder, texts)
    if texts:
        write_together(texts)
    if theirs:
        names = " and ".join(f"`{path}`" for path in theirs)
        raise ToolkitError(
            f"{names} changed since the toolkit wrote it, or is not its own, so it stays as it is",
            hint="move it away, or replace it with `toolkit report --force`",
        )
    return [*texts], facts.problems


def gather_run(config: Config, folder: RunFolder, reasons: Mapping[str, str]) -> "Facts":
    """Read what a run's files say."""
    from toolkit.report.facts import gather

    return gather(config, folder, read_manifest(folder), reasons)


def write_comparison(one: "Facts", other: "Facts", place: Path) -> "BothRuns":
    """Compare two runs and write the page to `place`."""
    from toolkit.report.compare import compare_page, compare_runs

    found = compare_runs(one, other)
    write_text(place, compare_page(found))
    return found


def _theirs(manifest: Manifest, folder: RunFolder, paths: list[Path]) -> list[Path]:
    """Return the files that are there and that the toolkit did not write as they are now."""
    validate = manifest.stages.get("validate")  # wrote the card in former versions
    own = [*manifest.pages, *(validate.outputs if validate else [])]
    names = foreign_outputs(None, folder, paths, own)
    return [path for path in paths if path_name(path, folder) in names]


def _remember(manifest: Manifest, folder: RunFolder, texts: Mapping[Path, str]) -> None:
    """Note in the manifest what is about to be written; what is there stays noted, in case this process dies before."""
    validate = manifest.stages.get("validate")
    known = [*manifest.pages, *(validate.outputs if validate else [])]
    names = {path_name(path, folder) for path in texts}
    noted = [file for file in manifest.pages if file.path not in names]
    for path, text in texts.items():
        content, name = text.encode("utf-8"), path_name(path, folder)
        there = [file for file in known if file.path == name and not foreign_outputs(None, folder, [path], [file])]
        sha256 = hashlib.sha256(content).hexdigest()
        noted += [*there[:1], FileRecord(path=name, size=len(content), mtime_ns=0, sha256=sha256)]
    manifest.pages = noted
    if validate is not None:
        left = [file for file in validate.outputs if file.path not in names]
        manifest.stages["validate"] = validate.model_copy(update={"outputs": left})
    write_manifest(folder, manifest)
