"""What a newcomer sees of `make`: signs of life, the end of the log after a failure, and nothing left after Ctrl-C."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from tests.support.waiting import has_ended, wait_for

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


def make(place: Path, target: str, python: str = sys.executable) -> "subprocess.Popen[str]":
    ours = ("CC", "CXX", "MAKEFLAGS", "MFLAGS", "MAKELEVEL")  # a make inside of make says more
    kept = {name: value for name, value in os.environ.items() if name not in ours}
    return subprocess.Popen(
        ["make", target, f"PYTHON={python}"],
        cwd=place,
        env={**kept, "PATH": f"{place / 'compilers'}:{os.environ['PATH']}", "PATIENTLY_SECONDS": "0.2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.slow
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
    assert len((place / "calls").read_text().splitlines()) == 3  # pip itself, the toolkit, the small base


@pytest.mark.slow
def test_the_quick_start_ends_with_the_next_step(place: Path) -> None:
    program(place / ".venv/bin/toolkit", '#!/bin/sh\necho "$1"\n')
    program(place / ".venv/bin/pip", STUB)
    (place / ".venv/bin/activate").touch()
    running = make(place, "quickstart")
    out, err = running.communicate(timeout=60)
    assert running.returncode == 0 and out.splitlines()[-1] == "ask"
    step = err.splitlines()[-1].removeprefix("next: ")
    program(place / "compilers/toolkit", '#!/bin/sh\necho "called: $*"\n')
    environment = {**os.environ, "PATH": f"{place / 'compilers'}:{os.environ['PATH']}"}
    typed = subprocess.run(["bash", "-c", step], cwd=place, env=environment, capture_output=True, text=True)
    assert typed.stdout == "called: init myproject --data data/sample.csv\n"


@pytest.mark.slow
def test_a_failing_installation_shows_its_log_and_stops(place: Path) -> None:
    program(place / ".venv/bin/pip", STUB + "echo 'no such compiler' >&2\nexit 7\n")
    running = make(place, ".installed-run")
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2 and "Error 7" in err
    assert "Building wheel for llama-cpp-python\nno such compiler\nfailed after " in err
    assert not (place / ".installed-run").exists() and (place / ".installed-run.log").exists()
    assert len((place / "calls").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("printed", "hint"),
    [
        ("SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "PIP_CERT=FILE"),
        ("ProxyError('Cannot connect to proxy.', NewConnectionError('[Errno 111]", "HTTPS_PROXY and https_proxy"),
        ("NameResolutionError(\"Failed to resolve 'pypi.org' ([Errno -3]\")", "check the network"),
        ("NewConnectionError('[Errno 101] Network is unreachable')", "check the network"),
        (
            "ERROR: Could not install packages due to an OSError: Missing dependencies for SOCKS support.",
            "http:// proxy",
        ),
        ("ReadTimeoutError: HTTPSConnectionPool(host='files.example', port=443): Read timed out.", "again"),
        ("ERROR: Could not install: [Errno 28] No space left on device", "free 10 GB"),
        ("c++: fatal error: Killed signal terminated program cc1plus", "CMAKE_BUILD_PARALLEL_LEVEL=1"),
    ],
)
def test_a_failure_of_a_known_cause_ends_with_what_to_do(
    place: Path, capfd: pytest.CaptureFixture[str], printed: str, hint: str
) -> None:
    program(place / "fails", f"#!/bin/sh\ncat <<'END'\n{printed}\nERROR: No matching distribution found\nEND\nexit 1\n")
    done = subprocess.run([sys.executable, "tools/patiently.py", "log", "./fails"], cwd=place)
    cause, said, last = capfd.readouterr().err.splitlines()
    assert done.returncode == 1 and last.startswith("   hint: ") and hint in last
    assert cause == printed and said.endswith("all output is in log")


@pytest.mark.parametrize(
    ("log", "command", "said", "hint"),
    [
        ("log", "./no-pip", "./no-pip: No such file", "make clean"),
        ("log", "/dev/null", "/dev/null: Permission denied", "make clean"),
        ("/proc/log", "true", "/proc/log: ", "a folder that you may write to"),
    ],
)
def test_what_cannot_even_begin_is_one_line_and_a_hint(
    place: Path, capfd: pytest.CaptureFixture[str], log: str, command: str, said: str, hint: str
) -> None:
    done = subprocess.run([sys.executable, "tools/patiently.py", log, command], cwd=place)
    first, last = capfd.readouterr().err.splitlines()
    assert done.returncode == 1 and first.startswith(said) and last.startswith("   hint: ") and hint in last


FULL = """
import runpy, sys, tempfile
def full(*_, **__):
    raise OSError(28, "No space left on device", "/tmp/installing-x")
tempfile.mkdtemp = full
sys.argv = ["patiently.py", "log", "true"]
runpy.run_path("tools/patiently.py", run_name="__main__")
"""


def test_a_full_disk_for_temporary_files_is_told_from_one_without_permission(
    place: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    done = subprocess.run([sys.executable, "-c", FULL], cwd=place)
    first, last = capfd.readouterr().err.splitlines()
    assert done.returncode == 1 and first == "/tmp/installing-x: No space left on device"
    assert "free 10 GB" in last and "TMPDIR=FOLDER" in last


@pytest.mark.parametrize(("name", "package"), [("python3", "python3-venv"), ("/opt/bin/python3.13", "python3.13-venv")])
def test_the_package_with_venv_is_that_of_the_python_named(place: Path, name: str, package: str) -> None:
    python = place / "compilers" / Path(name).name
    program(python, '#!/bin/sh\ncase "$*" in *venv*) exit 1 ;; esac\n')
    running = make(place, "needs", name if "/" not in name else str(python))
    _, err = running.communicate(timeout=60)
    assert running.returncode == 2
    assert err.splitlines()[:2] == ["missing: Python's venv module", f"   hint: Debian: apt install {package}"]


@pytest.mark.parametrize(
    "before", ["", "WARNING: Retrying (Retry(total=4)) after connection broken by 'ReadTimeoutError("]
)
def test_a_failure_of_another_cause_gets_no_hint(place: Path, capfd: pytest.CaptureFixture[str], before: str) -> None:
    program(place / "fails", f'#!/bin/sh\necho "{before}"\necho "error: no such compiler"\nexit 1\n')
    subprocess.run([sys.executable, "tools/patiently.py", "log", "./fails"], cwd=place)
    assert "hint" not in capfd.readouterr().err


@pytest.mark.slow
def test_ctrl_c_ends_all_that_the_installation_started(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a terminal sends it: to all of make's process group at once. No temporary file is left, either."""
    (place / "scratch").mkdir()
    monkeypatch.setenv("TMPDIR", str(place / "scratch"))
    program(
        place / ".venv/bin/pip",
        STUB
        + "mkdir $TMPDIR/pip-unpack; echo GB > $TMPDIR/pip-unpack/torch.whl\n"
        + "sh -c 'trap \"\" TERM; echo $$ > compiler; while :; do sleep 0.1; done'\n",
    )
    running = make(place, ".installed-run")
    wait_for(lambda: (place / "compiler").exists() and (place / "compiler").read_text().strip())
    assert len(list((place / "scratch").rglob("torch.whl"))) == 1
    os.killpg(running.pid, signal.SIGINT)
    _, err = running.communicate(timeout=60)
    assert running.returncode != 0 and "interrupted" in err and "Traceback" not in err
    compiler = int((place / "compiler").read_text())
    wait_for(lambda: has_ended(compiler))
    assert not (place / ".installed-run").exists()
    assert list((place / "scratch").iterdir()) == []
