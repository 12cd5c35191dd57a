"""The README's commands, run in a fresh copy of the repository as a newcomer would, with a real Ollama server.

Every ```sh and ```python block is executed, in order; one behind a `<!-- not run in tests: … -->` comment is parsed.
"""

import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from tests.conftest import ollama_binary
from tests.support.ollama_server import ollama_server
from tests.support.outside import smollm
from tests.support.places import REPOSITORY
from toolkit.cli import commands as verbs  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
BLOCK = re.compile(r"(<!-- not run in tests: [^>]*-->\n)?```(sh|python)\n(.*?)```", re.DOTALL)
IN_OTHER_TESTS = {"make fast", "make lint"}  # this very run, and .ci/run


@dataclass(frozen=True)
class Block:
    """One block of code in the README."""

    language: str
    code: str
    run: bool


BLOCKS = [Block(found[2], found[3], not found[1]) for found in BLOCK.finditer(README)]


def commands(block: Block) -> list[str]:
    return [line for line in block.code.splitlines() if line.strip()]


def test_the_readme_has_what_a_newcomer_needs() -> None:
    shown = "\n".join(block.code for block in BLOCKS)
    for said in ("make quickstart", "ollama run", "import ollama", "toolkit init", "toolkit doctor"):
        assert said in shown
    assert "@@" not in README


def test_every_toolkit_command_parses() -> None:
    for block in BLOCKS:
        for line in commands(block) if block.language == "sh" else []:
            words = shlex.split(line)
            if Path(words[0]).name == "toolkit":
                verb = group.get_command(click.Context(group), words[1])
                assert verb is not None, words
                verb.make_context(words[1], words[2:])


def test_every_verb_is_listed() -> None:
    for verb in group.list_commands(click.Context(group)):
        assert f"| `{verb}` |" in README


def test_the_architecture_names_every_module() -> None:
    tree = README[README.index("## Architecture") :]
    for path in sorted((REPOSITORY / "toolkit").iterdir()):
        if path.name.startswith("_") or path.name in ("templates", "py.typed"):
            continue
        assert path.name + ("/" if path.is_dir() else "") in tree, path.name


@pytest.mark.slow
@pytest.mark.ollama
def test_every_block_runs(tmp_path: Path) -> None:
    binary = ollama_binary()
    smollm()
    copy = tmp_path / "toolkit"
    files = subprocess.run(["git", "ls-files"], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    for name in files.stdout.splitlines():
        source, target = REPOSITORY / name, copy / name
        if source.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source, target, follow_symlinks=False)
    # What `make` would install is here already: the copy uses this interpreter's environment.
    (copy / ".venv").symlink_to(Path(sys.prefix))
    for mark in (".installed-run", ".installed-dev"):
        (copy / mark).touch()
    with ollama_server(binary, tmp_path / "ollama") as server:
        path = f"{Path(sys.prefix) / 'bin'}:{binary.parent}:{os.environ['PATH']}"
        environment = {**os.environ, "PATH": path, "PYTHONPATH": str(copy), "OLLAMA_HOST": server.url}
        for block in BLOCKS:
            if not block.run or set(commands(block)) <= IN_OTHER_TESTS:
                continue
            argv = ["bash", "-euc", block.code] if block.language == "sh" else [sys.executable, "-c", block.code]
            done = subprocess.run(argv, cwd=copy, env=environment, capture_output=True, text=True, timeout=1500)
            assert done.returncode == 0, f"{block.code}\n{done.stdout}\n{done.stderr}"
            assert "Traceback" not in done.stderr
            if "make quickstart" in block.code:
                assert "registered in Ollama" in done.stdout + done.stderr
            if block.language == "python":
                assert len(done.stdout.split()) > 5
        assert "all stages are fresh" in subprocess.run(
            ["toolkit", "run", "-c", "examples/quickstart.toml"],
            cwd=copy, env=environment, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
