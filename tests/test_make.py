"""What a newcomer sees of `make`: signs of life, the end of the log after a failure, and nothing left after Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

STUB = """#!/bin/sh
echo "$@" >> calls
case "$*" in *"-e ."*) ;; *) exit 0 ;; esac
echo "Building wheel for llama-cpp-python"
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A checkout's Makefile; the environment is there but for its pip, and the compilers are never called."""
    (tmp_path / "tools").mkdir()
    for name in ("Makefile", "tools/patiently.py", "pyproject.toml", "constraints.txt", "setup.py"):
        shutil.copy(REPOSITORY / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    (tmp_path / "compilers").mkdir()
    for name in ("cmake", "cc", "c++"):
        program(tmp_path / "compilers" / name, "#!/bin/sh\n")
    return tmp_path


def program(path: Path, text: str) -> None:
    path.write_text(text)
    path.chmod(0o755)


def make(place: Path, target: str) -> "subprocess.Popen[str]":
    ours = ("CC", "CXX", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # a make inside of make says more
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.Popen(
        ["make", target, f"PYTHON={sys.executable}"],
        cwd=place,
        env={**kept, "PATH": f"{place / 'compilers'}:{os.environ['PATH']}", "PATIENTLY_SECONDS": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def test_an_installation_that_takes_long_shows_that_it_is_alive(place: Path) -> None:
    program(place / ".venv/bin/pip", STUB + "sleep 1\n")
    running = make(place, ".installed-run")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0, err
    first, *lines = out.splitlines()
    assert first.startswith("installing: ") and "minutes" in first
    assert len(lines) >= 2
    assert all(" min " in line for line in lines)
    assert any(line.endswith("Building wheel for llama-cpp-python") for line in lines)
    assert (place / ".installed-run").exists() and not (place / ".installed-run.log").exists()
    assert len((place / "calls").read_text().splitlines()) == 2


def test_a_failing_installation_shows_its_log_and_stops(place: Path) -> None:
    program(place / ".venv/bin/pip", STUB + "echo 'no such compiler' >&2\nexit 7\n")
    running = make(place, ".installed-run")
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2 and "Error 7" in err
    assert "Building wheel for llama-cpp-python\nno such compiler\nfailed after " in err
    assert not (place / ".installed-run").exists() and (place / ".installed-run.log").exists()
    assert len((place / "calls").read_text().splitlines()) == 1


def test_ctrl_c_ends_all_that_the_installation_started(place: Path) -> None:
    """As a terminal sends it: to all of make's process group at once."""
    program(place / ".venv/bin/pip", STUB + "sh -c 'trap \"\" TERM; echo $$ > compiler; while :; do sleep 0.1; done'\n")
    running = make(place, ".installed-run")
    wait_for(lambda: (place / "compiler").exists() and (place / "compiler").read_text().strip())
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode != 0 and "interrupted" in err and "Traceback" not in err
    compiler = int((place / "compiler").read_text())
    wait_for(
        lambda: not Path(f"/proc/{compiler}").exists() or "State:\tZ" in Path(f"/proc/{compiler}/status").read_text()
    )
    assert not (place / ".installed-run").exists()


def wait_for(happened: Callable[[], object]) -> None:
    for _ in range(300):
        if happened():
            return
        time.sleep(0.05)
    raise AssertionError("it did not happen")
