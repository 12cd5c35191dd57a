"""Run a command that takes minutes, and show that it is alive: python tools/patiently.py LOG COMMAND…

Every 15 seconds (PATIENTLY_SECONDS) one line shows the time so far and the last line of the command's output.
The output goes into LOG, which is removed on success. On failure the cause and a hint are shown where it is known, else
the log's end.
The exit status is the command's. Ctrl-C ends the command and all that it started, and removes its temporary files.
"""

import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SHOWN = 60  # lines of the log after a failure
WIDTH = 90  # characters of its last line in a sign of life
CAUSE = 300  # and of the line that names a known cause

FREE = "free 10 GB; if it was /tmp that is full, run TMPDIR=FOLDER with the same command"
ELSEWHERE = "copy the repository to a folder that you may write to, and run the same command there"

# What pip 23 to 26 and gcc print, and what to do then. The first that is found counts: an error of a proxy, for
# example, is one of a connection too.
HINTS = {
    r"No space left on device": FREE,
    r"CERTIFICATE_VERIFY_FAILED": "your network puts its own certificate in the way: ask for its file, and run "
    "PIP_CERT=FILE with the same command",
    r"Missing dependencies for SOCKS": "pip cannot use a SOCKS proxy here: name an http:// proxy in HTTPS_PROXY, or "
    "unset ALL_PROXY, HTTPS_PROXY and their lower-case forms",
    r"ProxyError|Proxy Authentication Required": "the proxy refused: correct or unset HTTPS_PROXY and https_proxy",
    r"NameResolutionError|NewConnectionError|Network is unreachable": "there is no connection: check the network, and "
    "name its proxy if it has one: HTTPS_PROXY=http://HOST:PORT; docs/guide/offline.md does without a network",
    r"TimeoutError|timed out|IncompleteRead|ProtocolError|Connection reset": "the connection was lost: run the same "
    "command again",
    r"Killed signal terminated|[Oo]ut of memory|MemoryError": "memory ran out: run CMAKE_BUILD_PARALLEL_LEVEL=1 with "
    "the same command, which compiles one file at a time",
}


def main() -> int:
    """Run the command of the command line, and return its exit status; 130 when it was interrupted."""
    log, command = Path(sys.argv[1]), sys.argv[2:]
    signal.signal(signal.SIGTERM, _interrupt)
    signal.signal(signal.SIGHUP, _interrupt)
    started = time.monotonic()
    try:
        # Pip unpacks several GB into the folder for temporary files, and leaves them there when it is ended.
        with tempfile.TemporaryDirectory(prefix="installing-", ignore_cleanup_errors=True) as scratch:
            status = _run(command, log, scratch, started)
    except KeyboardInterrupt:
        print("interrupted: the same command starts again", file=sys.stderr)
        return 130
    except OSError as exc:
        print(f"{exc.filename or 'temporary files'}: {exc.strerror}", file=sys.stderr)
        hints = {None: FREE, command[0]: "run make clean, then the same command"}
        hint = FREE if exc.errno == errno.ENOSPC else hints.get(exc.filename, ELSEWHERE)
        print(f"   hint: {hint}", file=sys.stderr)
        return 1
    if status == 0:
        log.unlink()
        return 0
    lines = log.read_text(errors="replace").splitlines()
    cause, hint = _cause(lines)
    print("\n".join([cause] if cause else lines[-SHOWN:]), file=sys.stderr)
    print(f"failed after {_duration(started)}; all output is in {log}", file=sys.stderr)
    if hint:
        print(f"   hint: {hint}", file=sys.stderr)
    return status if status > 0 else 128 - status


def _run(command: list[str], log: Path, scratch: str, started: float) -> int:
    # A session of its own: a compiler that pip started through cmake is ended with it.
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, "TMPDIR": scratch},
            start_new_session=True,
        )
    try:
        return _wait(process, log, started)
    except KeyboardInterrupt:
        _end(process)
        raise


def _cause(lines: list[str]) -> tuple[str, str]:
    """Return the last line that tells a failure's cause, and what to do; both empty where it is not known."""
    nothing_found = any("(from versions: none)" in line for line in lines)
    # A request that pip repeats has often succeeded later: it counts only where nothing was found in the end.
    telling = [line for line in lines if nothing_found or "Retrying (" not in line]
    for cause, hint in HINTS.items():
        if found := [line.strip() for line in telling if re.search(cause, line)]:
            return found[-1][:CAUSE], hint
    return "", ""


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
