"""What a killed export leaves in an output folder outside a run: the next call overwrites it without asking."""

import contextlib
import glob
from collections.abc import Iterable, Iterator
from pathlib import Path

from toolkit.core.file_changes import foreign_outputs
from toolkit.core.files import clear_parts
from toolkit.core.run_folder import RunFolder
from toolkit.core.unfinished import noted, noting, settle


@contextlib.contextmanager
def noting_export(output: Path, name: str) -> Iterator[None]:
    """Note each file of an export that gets its name during the block, until all of them have theirs."""
    folder, stage = _as_stage(output, name)
    with noting(folder, stage):
        yield
    settle(folder, stage)


def finished(targets: Iterable[Path], output: Path, name: str) -> list[Path]:
    """List the targets that are there and are not what an export that did not come to its end left."""
    folder, stage = _as_stage(output, name)
    notes = noted(folder, stage)
    return [path for path in targets if path.is_dir() or foreign_outputs(None, folder, [path], notes)]


def clear_export(output: Path, name: str) -> None:
    """Remove the half-written files of killed exports of this name, also of other quantizations and forms."""
    start = glob.escape(f".{name}-")
    clear_parts(output.glob(f"{start}*.part"), output.glob(f"{start}*.old"))


def _as_stage(output: Path, name: str) -> tuple[RunFolder, str]:
    return RunFolder(output, name), f"{name}.export"
