"""The process that trains: `python -m toolkit.train.worker REQUEST ANSWER`, one, or several that accelerate launched.

Unsloth changes transformers in the process that imports it, and only the end of a process surely frees CUDA memory. So
the process that runs the stages never trains itself. REQUEST and ANSWER are JSON files (`launch.py`).
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

from toolkit.core import console, hardware, streams
from toolkit.core.config import Config
from toolkit.core.errors import INTERRUPTED, explain, unexpected
from toolkit.core.files import write_text
from toolkit.core.quiet import silence_bitsandbytes
from toolkit.core.run_folder import folder_of
from toolkit.core.signals import ending_cleanly
from toolkit.core.unfinished import noting
from toolkit.model.base import Base
from toolkit.train import OutOfMemory, parallel, relay, train
from toolkit.train.backend import UnslothFailed


def main(request: Path, answer: Path) -> int:
    """Train as requested, write the outcome or what went wrong, and return the exit code."""
    parallel.die_with_parent()
    silence_bitsandbytes()
    wanted = json.loads(request.read_text(encoding="utf-8"))
    with relay.sent_to(wanted["lines"] if parallel.rank() == 0 else ""):
        return _work(wanted, answer)


def _work(wanted: dict[str, Any], answer: Path) -> int:
    config = Config.model_validate(wanted["config"])
    first = parallel.rank() == 0
    console.configure(quiet=wanted["quiet"] or not first)
    if first and wanted["log"]:
        console.log_to(Path(wanted["log"]))
    found: dict[str, Any]
    code = 0
    try:
        base = Base(wanted["base"]["label"], Path(wanted["base"]["folder"]), wanted["base"]["commit"])
        folder = folder_of(config)
        options = {name: wanted[name] for name in ("restart", "avoid", "at_most")}
        with ending_cleanly(), noting(folder, "train") if first else parallel.silent():
            outcome = train(config, folder, base, **options)
        found = {
            "outputs": [str(path) for path in outcome.outputs],
            "figures": outcome.figures,
            "warning": outcome.warning,
        }
    except KeyboardInterrupt:
        found, code = {"interrupted": True}, INTERRUPTED
    except Exception as exc:
        if os.environ.get("TOOLKIT_DEBUG"):
            import traceback

            traceback.print_exc()
        known = explain(exc) or parallel.another_ended(exc) or unexpected(exc)
        fields = ("message", "hint", "exit_code", "details")
        found, code = {"error": {name: getattr(known, name) for name in fields}}, known.exit_code
        if isinstance(exc, UnslothFailed):
            found["unsloth_error"] = exc.reason
        if isinstance(exc, OutOfMemory):
            found["smaller"] = exc.smaller
        if hardware.launched() and not first:
            console.error(known)  # the others may be waiting, and their launcher ends them
    found["warnings"] = streams.state().warnings
    if first or found.get("smaller"):  # any of them may be the one that ran out of memory
        try:
            write_text(answer, json.dumps(found, default=str))
        except OSError as exc:
            known = explain(exc) or unexpected(exc)
            console.error(known)
            return known.exit_code
    return code


if __name__ == "__main__":
    code = main(Path(sys.argv[1]), Path(sys.argv[2]))
    sys.stderr.flush()
    os._exit(code)  # libraries' threads and exit handlers have nothing more to do, and some of them hang
