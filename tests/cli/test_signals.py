"""Every verb that is ended by a signal leaves whole files alone, says so in one line, and goes on when called again."""

import json
import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.conftest import HEAVY, call_toolkit
from tests.support import models, processes
from tests.support.waiting import wait_while_running

pytestmark = pytest.mark.slow

SETTINGS = """
[run]
name = "r"
folder = "runs"
[data]
source = "rows.csv"
[model]
base = "base"
[export]
quantizations = ["F16", "Q8_0"]
default = "F16"
[validate]
rows = 2
answer_tokens = 2
questions = ["What helps?"]
"""
# Stops at a rename in the main thread, with the finished file under its temporary name, until a signal comes.
STOPPED = """
import os, sys, time
from pathlib import Path

real, seen = os.replace, []

def replace(*given, **options):
    seen.append(given)
    if len(seen) == int(os.environ["AT"]):
        Path("reached").touch()
        while not Path("on").exists():
            time.sleep(0.01)
    return real(*given, **options)

os.replace = os.rename = replace
from toolkit.cli.main import main
sys.argv = ["toolkit", os.environ["VERB"], "--json"]
main()
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    models.save_model(tmp_path / "base")
    (tmp_path / "toolkit.toml").write_text(SETTINGS)
    words = [f"{first}{second}" for first in ("fever", "pain", "cough", "gout") for second in "abcdefgh"]
    rows = [f"What helps against {word}?,Rest helps against {word}." for word in words]
    (tmp_path / "rows.csv").write_text("\n".join(["question,answer", *rows]) + "\n")
    models.save_adapter(tmp_path / "runs" / "r" / "adapter", tmp_path / "base")
    return tmp_path


def ended(project: Path, verb: str, at: int, *numbers: int) -> tuple[int, str, str]:
    """Call a verb, send it signals at its rename number `at`, and return exit code, stdout and stderr."""
    large = (*processes.LARGE, *processes.LARGE_TOO) if verb in HEAVY else ()
    env = {"AT": str(at), "VERB": verb, "OLLAMA_HOST": "127.0.0.1:9"}
    pipe = subprocess.PIPE
    process = processes.start("-c", STOPPED, cwd=project, env=env, stdout=pipe, stderr=pipe, imports=large)
    wait_while_running(process, (project / "reached").exists)
    for number in numbers:
        process.send_signal(number)
    out, err = process.communicate(timeout=120)
    (project / "reached").unlink()
    return process.returncode, out, err


def left(project: Path) -> list[str]:
    """Name what is unfinished below a folder."""
    return [path.name for path in project.rglob(".*") if path.name.endswith((".part", ".old", ".undo"))]


def check(project: Path, verb: str, at: int, *numbers: int) -> None:
    """A signal ends the verb as Ctrl-C does, and the same command does the rest."""
    code, out, err = ended(project, verb, at, *numbers)
    assert code == 130, err
    assert err.count("error: interrupted") == 1 and "Traceback" not in err and "Exception ignored" not in err
    said = json.loads(out.splitlines()[-1])
    assert (said["error"], said["exit_code"]) == ("interrupted", 130)
    assert left(project) == []
    again = call_toolkit(verb, cwd=project)
    assert again.code == 0, again.err


@pytest.mark.parametrize(("at", "number"), [(1, signal.SIGTERM), (2, signal.SIGINT), (3, signal.SIGHUP)])
def test_prepare(project: Path, at: int, number: int) -> None:
    check(project, "prepare", at, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_export_with_a_signal_that_comes_twice(project: Path, number: int) -> None:
    assert call_toolkit("prepare", cwd=project).code == 0
    check(project, "export", 2, number, number)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at", [1, 4])
def test_validate(project: Path, at: int, number: int) -> None:
    for stage in ("prepare", "export"):
        assert call_toolkit(stage, cwd=project).code == 0
    check(project, "validate", at, number)


def test_init_in_a_process_that_ignores_hang_ups(tmp_path: Path) -> None:
    """As under nohup: the verb is done."""
    code = "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_IGN)\n" + STOPPED
    env = {**os.environ, "AT": "1", "VERB": "init", "PYTHONPATH": os.environ.get("PYTHONPATH", "")}
    process = processes.start("-c", code, cwd=tmp_path, env=env, stderr=subprocess.PIPE, imports=())
    wait_while_running(process, (tmp_path / "reached").exists)
    process.send_signal(signal.SIGHUP)
    (tmp_path / "on").touch()
    _, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert (tmp_path / "toolkit.toml").exists()
