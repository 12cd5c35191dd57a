"""Registrations in processes of their own, to be killed: every line on stdin starts one by a fork of warm code.

    python -m tests.register.child FOLDER URL NAME SEED register|rollback

Prints the child's process id, then, when the child has ended, its exit status; the child stops itself (SIGSTOP) before
it begins, until whoever started it has got ready.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.places import REPOSITORY


@dataclass
class Nursery:
    """The process that forks; one child at a time."""

    process: "subprocess.Popen[str]"

    def begin(self) -> int:
        """Start a child and return its process id; it is stopped until `go`."""
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return int(self.process.stdout.readline())

    def end(self) -> int:
        """Wait for the child; return its exit status, or the signal that killed it as a negative number."""
        assert self.process.stdout
        return int(self.process.stdout.readline())


def go(pid: int) -> None:
    """Let a child run, once it has stopped itself."""
    while " T" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:2]:
        time.sleep(0.001)
    os.kill(pid, signal.SIGCONT)


@contextmanager
def nursery(folder: Path, url: str, name: str, seed: int, what: str = "register", **env: str) -> Iterator[Nursery]:
    """Start a nursery with an environment of its own; XDG_CACHE_HOME makes it another machine."""
    arguments = [sys.executable, "-m", "tests.support.child", str(folder), url, name, str(seed), what]
    with subprocess.Popen(
        arguments,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **env},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        yield Nursery(process)
        assert process.stdin
        process.stdin.close()


def main(folder: str, url: str, name: str, seed: str, what: str) -> None:
    """Fork a child for every line."""
    from tests.register import conftest
    from tests.support import tiny_gguf
    from toolkit.core import signals
    from toolkit.core.errors import INTERRUPTED
    from toolkit.prompt import format
    from toolkit.prompt.tokenizer import load_tokenizer
    from toolkit.register import prompt_parity, register, verify
    from toolkit.register.rollback import roll_back

    run = conftest.bare_run(Path(folder), url, name, seed=int(seed))
    load_tokenizer(run.folder.adapter, format.prompt_format(run.config.prompt))  # what it imports is here before a fork
    # These two only read: a kill in them is one between two changes.
    prompt_parity.prove_prompts = lambda *arguments: {}
    verify.smoke = lambda *arguments, **options: conftest.ANSWERED
    for _ in sys.stdin:
        child = os.fork()
        if not child:
            status = 1
            try:
                print(os.getpid(), flush=True)
                os.kill(os.getpid(), signal.SIGSTOP)
                with signals.ending_cleanly():
                    if what == "register":
                        register(run.config, run.folder, tiny_gguf.EOS, run.files, run.digests, conftest.FEW)
                    else:
                        roll_back(run.config)
                status = 0
            except KeyboardInterrupt:
                status = INTERRUPTED
            finally:
                os._exit(status)
        _, waited = os.waitpid(child, 0)
        print(-os.WTERMSIG(waited) if os.WIFSIGNALED(waited) else os.WEXITSTATUS(waited), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
