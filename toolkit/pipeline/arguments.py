"""Check what a Python program passes to a run: the command line's own parser does this for the verbs."""

import os
from pathlib import Path
from typing import NoReturn

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.pipeline import BESIDE, STAGES


def check_path(path: object) -> None:
    """Raise ToolkitError (exit 2) for what cannot be a settings file, or is an override in its place."""
    if path is None:
        return
    if isinstance(path, bytes) or not isinstance(path, str | os.PathLike):
        _refuse("the settings file", path, "pass its path, or None for the defaults")
    text = os.fspath(path)
    if isinstance(text, str) and "=" in text and not Path(text).exists():
        _refuse("the settings file", path, f"overrides come after it: Run.load(None, {text!r})")


def check_progress(progress: object) -> None:
    """Raise ToolkitError (exit 2) for what cannot be called with a line, and is neither None nor "terminal"."""
    if progress is not None and progress != "terminal" and not callable(progress):
        _refuse("progress", progress, 'pass a function, as in progress=print, or None, or "terminal"')


def check_stage(name: object, gpus: object, replace: object) -> None:
    """Raise ToolkitError (exit 2) for a stage that does not exist, or options that it cannot have."""
    known = {**STAGES, **BESIDE}
    if name not in known:
        _refuse("the stage", name, f"the stages are {', '.join(known)}")
    if not isinstance(gpus, int) or isinstance(gpus, bool) or gpus < 1:
        _refuse("gpus", gpus, "pass a whole number from 1")
    if not isinstance(replace, tuple | list) or not all(isinstance(each, str) for each in replace):
        _refuse("replace", replace, 'pass the names of models, as in replace=("medassist:latest",)')


def check_question(question: object, instruction: object) -> None:
    """Raise ToolkitError (exit 2) for a question or an instruction that is not text."""
    if not isinstance(question, str):
        _refuse("the question", question, "pass it as text")
    if instruction is not None and not isinstance(instruction, str):
        _refuse("the instruction", instruction, "pass it as text, or None for that of the settings")


def _refuse(what: str, given: object, hint: str) -> NoReturn:
    raise ToolkitError(f"{what} cannot be {repr(given)[:200]}", hint=hint, exit_code=USAGE)
