"""The verb `init`: settings and sample data, with the prompt in the language of the user's own data."""

import errno
import os
from pathlib import Path

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError


def write_start(directory: Path, *, dry_run: bool, force: bool, data: str | None) -> None:
    """Write the files into a folder, and say which; `data` is the user's own file, or None."""
    from toolkit.init import start

    language = ""
    if data is not None:
        from toolkit.prepare.language import file_language

        if not Path(data).exists():
            raise ToolkitError(
                f"there is no data file `{data}`", hint="name your file with `--data FILE`", exit_code=MISSING
            )
        language = file_language(Path(data))
    source = None if data is None else Path(data)
    try:
        written = start(directory, dry_run=dry_run, force=force, data=source, language=language)
    except OSError as exc:
        if exc.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        raise ToolkitError(
            f"no permission to write `{exc.filename}`: {os.strerror(exc.errno)}",
            hint="toolkit init FOLDER, where FOLDER is in a folder that you may write to, such as ~/myproject",
        ) from None
    names = [str(path) for path in written]
    found = {} if data is None else {"language": language}
    console.result({"would_write" if dry_run else "written": names, **found}, "\n".join(names))
    if data is not None:
        _say_language(data, language)


def _say_language(data: str, language: str) -> None:
    from toolkit.prompt.languages import SENTENCES, language_name

    if not language:
        console.info(f"{data}: the language of the answers is uncertain, so the prompt is in English ([prompt])")
        return
    name = language_name(language)
    if language == "en" or language in SENTENCES:
        console.info(f"{data}: the answers are in {name}, and so is the prompt ([prompt])")
    else:
        console.warn(
            f"{data}: the answers are in {name}, and the prompt asks for it; write prompt.instruction, "
            f"validate.questions and validate.instruction in {name} too"
        )
