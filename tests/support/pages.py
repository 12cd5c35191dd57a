"""README and the pages under docs/: their blocks of code, their links, and a copy of the repository to run them in."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.ollama_server import OllamaServer
from tests.support.places import REPOSITORY

README = REPOSITORY / "README.md"
PAGES = (README, *sorted((REPOSITORY / "docs").rglob("*.md")))
MARK = re.compile(r"<!-- not run in tests: (?P<reason>[^>]+) -->")
FENCE = re.compile(r"^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)
RUN = ("sh", "python")  # the languages of blocks that are run
IN_OTHER_TESTS = ("make fast", "make lint")  # this very run, and .ci/run


@dataclass(frozen=True)
class Block:
    """One block of code of a page; `reason` says why it is not run, and is empty where it is."""

    page: Path
    line: int
    language: str
    code: str
    reason: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(REPOSITORY)}:{self.line}"

    @property
    def run(self) -> bool:
        return self.language in RUN and not self.reason and not set(self.commands) <= set(IN_OTHER_TESTS)

    @property
    def commands(self) -> list[str]:
        """The lines of a block of shell commands, without comments; what a backslash continues is one line."""
        lines = self.code.replace("\\\n", " ").splitlines()
        return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]

    @property
    def toolkit_calls(self) -> list[list[str]]:
        """The arguments of each call of the toolkit, up to a pipe, a redirection or a comment."""
        if self.language != "sh":
            return []
        calls = []
        for line in self.commands:
            for part in re.split(r"\s(?:&&|\|\|?|>)\s", line):
                words = shlex.split(part, comments=True) if "toolkit" in part else []
                while words and re.fullmatch(r"\w+=\S*", words[0]):
                    words = words[1:]
                if words and Path(words[0]).name == "toolkit":
                    calls.append(words[1:])
        return calls


def blocks_of(page: Path) -> list[Block]:
    """Return a page's blocks of code in their order."""
    text = page.read_text(encoding="utf-8")
    found = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].rstrip("\n").rpartition("\n")[2]
        mark = MARK.fullmatch(before.strip())
        line = text.count("\n", 0, fence.start()) + 1
        found.append(Block(page, line, fence["language"], fence["code"], mark["reason"] if mark else ""))
    return found


def without_blocks(page: Path) -> str:
    """Return a page's text without its blocks of code."""
    return FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """Return the names by which a page's headings are linked, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", without_blocks(page), re.MULTILINE)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@dataclass(frozen=True)
class Checkout:
    """A fresh copy of the repository with its environment and a server, as a newcomer has them after installation."""

    folder: Path
    environment: dict[str, str]

    def run(self, block: Block) -> "subprocess.CompletedProcess[str]":
        """Run a block in the copy's root."""
        argv = ["bash", "-euc", block.code] if block.language == "sh" else [sys.executable, "-c", block.code]
        return self.call(argv)

    def call(self, argv: list[str]) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            argv, cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=1500
        )  # fmt: skip


@contextmanager
def checkout(folder: Path, server: OllamaServer) -> Iterator[Checkout]:
    """Copy what git knows into `folder`; what `make` would install is this interpreter's environment."""
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        source, target = REPOSITORY / name, folder / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    (folder / ".venv").symlink_to(Path(sys.prefix))
    for mark in (".installed-run", ".installed-dev"):
        (folder / mark).touch()
    path = f"{Path(sys.prefix) / 'bin'}:{server.binary.parent}:{os.environ['PATH']}"
    ours = {"PATH": path, "PYTHONPATH": str(folder), "OLLAMA_HOST": server.url, "OMP_NUM_THREADS": "1"}
    yield Checkout(folder, {**os.environ, **ours})  # several threads wait for each other where others are at work
