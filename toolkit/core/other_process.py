"""A Python process that finds the same packages as this one, whatever lies in the current folder."""

import sys


def python_command(code: str) -> list[str]:
    """Return the command of a Python that runs some lines of code.

    It does not import from the current folder, where a user may keep a `random.py`, and looks for modules where this
    process looks too.
    """
    return [sys.executable, "-P", "-c", f"import sys\nsys.path += {list(filter(None, sys.path))!r}\n{code}"]
