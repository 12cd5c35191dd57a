"""Call the command line over and over, each time with a fault at another of its writes: kill -9, or a full disk.

`python -m tests.support.faulty FOLDER WHICH COMMAND…` runs COMMAND undisturbed in a copy of FOLDER and counts its
writes (renames, deletions, fsyncs, writes of files). Then for each number that WHICH names (`START:STEP`, or `all`) and
both faults, in a fresh copy each: COMMAND with the fault, `toolkit status`, COMMAND again. A JSON list says how.
"""

import contextlib
import errno
import hashlib
import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.support.places import REPOSITORY

CALLS = ("replace", "rename", "unlink", "remove", "rmdir", "fsync", "link", "mkdir", "write")
# What a stage imports where it cannot be run before the forks: torch's and llama.cpp's threads do not outlive one.
MODULES = {
    "validate": ("torch", "peft", "transformers.models.llama.modeling_llama", "llama_cpp", "toolkit.validate.stage"),
    "evaluate": (
        "torch",
        "peft",
        "transformers.models.llama.modeling_llama",
        "llama_cpp",
        "toolkit.evaluate.stage",
        "sacrebleu",
        "rouge_score.rouge_scorer",
        "scipy.stats",
    ),
    "train": ("torch", "peft", "trl", "matplotlib.figure", "transformers.models.llama.modeling_llama"),
}
# Not results: what was printed, when it was, and the lock.
OTHER = {"log.txt", "manifest.json", ".lock"}


class Faults:
    """Counts the writes of this process and fails at one of them; 0 counts alone."""

    def __init__(self, number: int, kill: bool) -> None:
        self.number, self.kill, self.seen = number, kill, 0

    def strike(self, path: object = None) -> None:
        """Count one more write; the path is what the system would name."""
        self.seen += 1
        if self.seen == self.number:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            named = [os.fspath(path)] if isinstance(path, str | os.PathLike) else []
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), *named)

    def install(self) -> None:
        for name in CALLS:
            setattr(os, name, self.counted(getattr(os, name)))
        usual: Any = io.open

        def opened(file: Any, mode: str = "r", *more: Any, **options: Any) -> Any:
            found = usual(file, mode, *more, **options)
            return Counted(found, self) if set(mode) & set("wax+") else found

        io.open = opened

    def counted(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def counting(*given: Any, **options: Any) -> Any:
            self.strike(given[0] if given else None)
            return call(*given, **options)

        return counting


class Counted:
    """A file whose writes may fail."""

    def __init__(self, file: Any, faults: Faults) -> None:
        self.file, self.faults = file, faults

    def write(self, data: Any) -> Any:
        if self.faults.seen + 1 == self.faults.number:
            self.file.write(data[: len(data) // 2])
            self.file.flush()
        self.faults.strike()
        return self.file.write(data)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.file, name)

    def __enter__(self) -> "Counted":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


class ForkedWorker:
    """Stands for `subprocess.Popen` of the process that trains: a fork, which imports nothing and counts its writes."""

    faults: Faults | None = None

    def __init__(self, called: list[str]) -> None:
        self.code: int | None = None
        self.counted = tempfile.TemporaryFile()  # noqa: SIM115
        self.pid = os.fork()
        if self.pid == 0:
            from toolkit.train import worker

            code, real, faults = 1, getattr(os, "write"), self.faults  # noqa: B009
            try:
                code = worker.main(Path(called[-2]), Path(called[-1]))
            finally:
                if faults:
                    faults.number = 0
                    real(self.counted.fileno(), str(faults.seen).encode())
                os._exit(code)

    def wait(self) -> int:
        if self.code is None:
            self.code = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
            self.counted.seek(0)
            found = self.counted.read()
            if self.faults:  # what the fork has struck does not strike again
                self.faults.seen = max(self.faults.seen, int(found or 0))
                self.faults.number = 0 if not found or int(found) >= self.faults.number else self.faults.number
        return self.code

    def poll(self) -> int | None:
        return self.code

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def call(command: list[str], place: Path, number: int = -1, kill: bool = False) -> tuple[int, str, int]:
    """Call the command line in a fork; returns exit code (negative: signal), what it printed, and its writes."""
    with tempfile.TemporaryFile() as said, tempfile.TemporaryFile() as counted:
        pid = os.fork()
        if pid == 0:
            os.chdir(place)
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
            from toolkit.cli.main import main

            sys.argv = ["toolkit", *command]
            faults, real, code = Faults(number, kill), os.write, 1
            if number >= 0:
                ForkedWorker.faults = faults
                faults.install()
            try:
                main()
            except SystemExit as end:
                code = end.code if isinstance(end.code, int) else 0
            except BaseException as exc:
                real(2, f"Traceback: {exc!r}".encode())
            real(counted.fileno(), str(faults.seen).encode())
            with contextlib.suppress(BaseException):
                sys.stdout.flush()
            os._exit(code or 0)
        _, status = os.waitpid(pid, 0)
        said.seek(0)
        counted.seek(0)
        count = int(counted.read() or 0)
        return os.waitstatus_to_exitcode(status), said.read().decode("utf-8", "replace"), count


def _untimed(path: Path) -> bytes:
    """Return a file's bytes, without the speed that a training log states and the fractions in an evaluation.

    What goes on after an interruption is computed in smaller batches, which round otherwise.

    Of the page, whose text holds times, there is the end alone: all it says comes from the other files, and a damaged
    one would lack its end.
    """
    content = path.read_bytes()
    if path.name == "report.html":
        return content[-8:]
    if path.name in ("evaluation.json", ".evaluate.answers.jsonl"):
        return re.sub(rb"-?\d+\.\d+(e-?\d+)?", b"", content)
    return re.sub(rb'"tokens_per_second": [0-9.]+', b"", content) if path.name == "train_log.jsonl" else content


def results(place: Path) -> dict[str, str]:
    """Return the hash of every file below a folder, but for logs, the manifest and the cache."""
    return {
        str(path.relative_to(place)): hashlib.sha256(_untimed(path)).hexdigest()
        for path in sorted(place.rglob("*"))
        if path.is_file() and path.name not in OTHER and "cache" not in path.parts and "checkpoints" not in path.parts
    }


def main(source: Path, which: str, command: list[str]) -> None:
    started: Any = subprocess.Popen

    def start(called: Any, **options: Any) -> Any:
        return ForkedWorker(called) if "toolkit.train.worker" in called else started(called, **options)

    setattr(subprocess, "Popen", start)  # noqa: B010
    ended: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as work:

        def fresh() -> Path:
            place = Path(work) / "place"
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(source, place)
            return place

        if command[0] in MODULES:
            for name in MODULES[command[0]]:
                import_module(name)
            warm_up(fresh(), ["status", *options(command)])
        else:
            warm_up(fresh(), command)
        place = fresh()
        code, said, count = call(command, place, 0)
        assert code == 0, said
        wanted = results(place)
        first_one, _, step = which.partition(":")
        numbers = range(1, count + 1) if which == "all" else range(int(first_one), count + 1, int(step))
        for number in numbers:
            for kill in (True, False):
                place = fresh()
                first, said, _ = call(command, place, number, kill)
                state, stated, _ = call(["status", *options(command)], place)
                again, said_again, _ = call(command, place)
                found = results(place)
                differing = sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))
                one = {"number": number, "kill": kill, "first": first, "said": said, "status": state, "stated": stated}
                ended.append({**one, "again": again, "said_again": said_again, "differing": differing})
    print(json.dumps(ended))


def warm_up(place: Path, command: list[str]) -> None:
    """Run the command in this very process, so that the forks need not import anything."""
    from toolkit.cli.main import main as call_main

    kept = [os.dup(1), os.dup(2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    before = Path.cwd()
    os.chdir(place)
    for descriptor in (1, 2):
        os.dup2(nowhere, descriptor)
    for words in (command, ["status", *options(command)]):
        sys.argv = ["toolkit", *words]
        with contextlib.suppress(SystemExit):
            call_main()
    for descriptor, usual in zip((1, 2), kept, strict=True):
        os.dup2(usual, descriptor)
    os.chdir(before)


def options(command: list[str]) -> list[str]:
    """Return the options of a command that say which run it is."""
    return [word for at, word in enumerate(command) if word in ("-c", "--set") or command[at - 1] in ("-c", "--set")]


def faults_of(folder: Path, which: str, *command: str) -> list[dict[str, Any]]:
    """Run this file as described above, and return how each fault went."""
    env = {**os.environ, "PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    env |= {"TOKENIZERS_PARALLELISM": "false", "OLLAMA_HOST": "127.0.0.1:9", "HF_HUB_OFFLINE": "1"}
    env |= {"XDG_CACHE_HOME": str(folder.parent / "cache")}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.faulty", str(folder), which, *command],
        cwd=REPOSITORY,
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ended: list[dict[str, Any]] = json.loads(done.stdout.splitlines()[-1])
    return ended


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], sys.argv[3:])
