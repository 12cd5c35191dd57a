"""Run a command that takes minutes, and show that it is alive: python tools/patiently.py LOG COMMAND…

Every 15 seconds (PATIENTLY_SECONDS) one line shows the time so far and the last line of the command's output.
The output goes into LOG, which is removed on success; on failure its end is shown.
The exit status is the command's. Ctrl-C ends the command and all that it started.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

SHOWN = 60  # lines of the log after a failure
WIDTH = 90  # characters of its last line in a sign of life


def main() -> int:
    """Run the command of the command line, and return its exit status; 130 when it was interrupted."""
    log, command = Path(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    started = time.monotonic()
    # A session of its own: a compiler that pip started through cmake is ended with it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    try:
        status = _wait(process, log, started)
    except KeyboardInterrupt:
        _end(process)
        print("interrupted: the same command starts again", file=sys.stderr)
        return 130
    if status == 0:
        log.unlink()
        return 0
    lines = log.read_text(errors="replace").splitlines()
    print("\n".join(lines[-SHOWN:]), file=sys.stderr)
    print(f"failed after {_duration(started)}; all output is in {log}", file=sys.stderr)
    return status if status > 0 else 128 - status


def _wait(process: "subprocess.Popen[bytes]", log: Path, started: float) -> int:
    every = float(os.environ.get("PATIENTLY_SECONDS", "15"))
    while True:
        try:
            return process.wait(every)
        except subprocess.TimeoutExpired:
            print(f"  {_duration(started)}  {_last_line(log)}", flush=True)


def _last_line(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    return lines[-1][:WIDTH] if lines else "…"


def _duration(started: float) -> str:
    minutes, seconds = divmod(round(time.monotonic() - started), 60)
    return f"{minutes} min {seconds:02d} s"


def _interrupt(number: int, frame: object) -> None:
    raise KeyboardInterrupt


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End the command and what it started: politely, and after three seconds for good."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not leave a compiler behind
    with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(3)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


if __name__ == "__main__":
    sys.exit(main())
