"""`toolkit init`: a commented toolkit.toml for a new project, with sample data or for a data file that is there."""

from importlib import resources
from pathlib import Path
from typing import Any

from toolkit.core.config_file import starter
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import write_text
from toolkit.core.streams import printable
from toolkit.prompt.languages import SENTENCES, language_name

SAMPLE = Path("data/sample.csv")


def start(directory: Path, *, dry_run: bool, force: bool, data: Path | None = None, language: str = "") -> list[Path]:
    """Write `toolkit.toml` into a folder, and `data/sample.csv` where no `data` file is given; return their paths.

    `language` is the ISO 639 code of the data's language, "" where it is not known: prompt and validation are then in
    English. Files with the same text are left alone. Raises ToolkitError (exit 2) rather than overwrite a different
    one, unless `force`.
    """
    source = SAMPLE.as_posix() if data is None else _from_inside(data, directory)
    texts = {directory / "toolkit.toml": starter({"data": {"source": source}, **_in_language(language)})}
    if data is None:
        sample = resources.files("toolkit").joinpath("templates/sample.csv")
        texts[directory / SAMPLE] = sample.read_text(encoding="utf-8")
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


def _from_inside(data: Path, directory: Path) -> str:
    """Return a data file's path as it is called from a folder: relative within the folder, else from the root."""
    whole, folder = data.expanduser().resolve(), directory.expanduser().resolve()
    if (shown := printable(str(whole))) != str(whole):
        raise ToolkitError(
            f"the settings cannot name `{shown}`: TOML is UTF-8, and that name is not",
            hint="rename the file or folder, then run the same command again",
            exit_code=USAGE,
        )
    return whole.relative_to(folder).as_posix() if whole.is_relative_to(folder) else str(whole)


def _in_language(code: str) -> dict[str, dict[str, Any]]:
    """Return the settings that make prompt and validation speak a language, as far as it is known here."""
    if code in ("", "en"):
        return {}
    language = {"language": language_name(code)}
    if code not in SENTENCES:
        return {"prompt": language}
    return {"prompt": {**language, **SENTENCES[code].prompt()}, "validate": SENTENCES[code].validation()}
