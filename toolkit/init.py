"""`toolkit init`: a commented toolkit.toml and the sample data, for a new project."""

from importlib import resources
from pathlib import Path

from toolkit.core.config_file import starter
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import write_text

SAMPLE = Path("data/sample.csv")


def start(directory: Path, *, dry_run: bool, force: bool) -> list[Path]:
    """Write `toolkit.toml` and `data/sample.csv` into a folder and return their paths.

    Files with the same text are left alone. Raises ToolkitError (exit 2) rather than overwrite a different one, unless
    `force`.
    """
    texts = {
        directory / "toolkit.toml": starter({"data": {"source": SAMPLE.as_posix()}}),
        directory / SAMPLE: resources.files("toolkit").joinpath("templates/sample.csv").read_text(encoding="utf-8"),
    }
    if directory.exists() and not directory.is_dir():
        raise ToolkitError(f"`{directory}` is a file, not a folder", hint="toolkit init FOLDER", exit_code=USAGE)
    differing = [path for path, text in texts.items() if path.exists() and path.read_bytes() != text.encode("utf-8")]
    if differing and not force:
        raise ToolkitError(
            f"{' and '.join(f'`{path}`' for path in differing)} already exists with other content",
            hint="choose another folder, or overwrite with --force",
            exit_code=USAGE,
        )
    if not dry_run:
        for path, text in texts.items():
            write_text(path, text)
    return list(texts)
