"""The process that trains: `python -m toolkit.train.child ORDER ANSWER`, one, or several that a launcher started.

Unsloth changes transformers in the process it is imported into, and CUDA memory is given back for certain only when a
process ends; so whoever runs the stages never trains itself. ORDER and ANSWER are JSON files (`apart.py`).
"""

import contextlib
import json
import os
import sys
from pathlib import Path
from typing import Any

from toolkit import console, machine
from toolkit.base import Base
from toolkit.config import Config
from toolkit.errors import INTERRUPTED, ToolkitError, explain, unexpected
from toolkit.run import folder_of, write_text
from toolkit.train import train, workers
from toolkit.train.backend import UnslothFailed


def main(order: Path, answer: Path) -> int:
    """Train as ordered, write the outcome or what went wrong, and return the exit code."""
    workers.die_with_parent()
    wanted = json.loads(order.read_text(encoding="utf-8"))
    config = Config.model_validate(wanted["config"])
    folder = folder_of(config)

    first = workers.rank() == 0
    console.configure(quiet=wanted["quiet"] or not first)
    if first and wanted["log"]:
        console.log_to(Path(wanted["log"]))
    found: dict[str, Any]
    code = 0
    try:
        base = Base(wanted["base"]["label"], Path(wanted["base"]["folder"]), wanted["base"]["commit"])
        with contextlib.nullcontext() if first else workers.silent():
            outcome = train(config, folder, base, restart=wanted["restart"], avoid=wanted["avoid"])
        found = {"outputs": [str(path) for path in outcome.outputs], "figures": outcome.figures}
    except KeyboardInterrupt:
        found, code = {"interrupted": True}, INTERRUPTED
    except Exception as exc:
        if os.environ.get("TOOLKIT_DEBUG"):
            import traceback

            traceback.print_exc()
        known = explain(exc) or unexpected(exc)
        found, code = {"error": _plain(known)}, known.exit_code
        if isinstance(exc, UnslothFailed):
            found["avoid"] = exc.reason
        if machine.launched() and not first:
            console.error(known)  # the others may be waiting, and their launcher ends them
    if first:
        write_text(answer, json.dumps(found, default=str))
    if code == 0:
        workers.leave()
    return code


def _plain(problem: ToolkitError) -> dict[str, Any]:
    return {
        "message": problem.message,
        "hint": problem.hint,
        "exit_code": problem.exit_code,
        "details": problem.details,
    }


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(code)  # libraries' threads and exit handlers have nothing more to do, and some of them hang
