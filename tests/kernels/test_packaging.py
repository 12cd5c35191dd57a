"""The package's own build compiles the kernels where it can, and is whole where it cannot; what is built runs."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from toolkit import __version__

pytestmark = pytest.mark.slow

LIBRARY = "toolkit/kernels/libquantize.so"
COMPILER = any(map(shutil.which, ("c++", "g++", "clang++")))


def checkout(folder: Path) -> Path:
    """Copy what a wheel is built from, with the links of a checkout and without its build products."""
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE", "Modelfile.template"):
        shutil.copy(REPOSITORY / name, source / name)
    shutil.copytree(REPOSITORY / "data", source / "data", ignore=lambda *_: ["raw", "dataset"])
    left_out = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(REPOSITORY / "toolkit", source / "toolkit", ignore=left_out, symlinks=True)
    return source


def wheel(folder: Path, compiler: str | None) -> Path:
    """Build a wheel as `pip wheel . --no-deps` does, with the setuptools of this environment; nothing is downloaded."""
    environment = {**os.environ, **({"CXX": compiler} if compiler else {})}
    command = [sys.executable, "-m", "pip", "wheel", "-v", "--no-deps", "--no-build-isolation", "-w", "../dist", "."]
    done = subprocess.run(command, cwd=checkout(folder), env=environment, capture_output=True, text=True)
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    # setuptools frames what it warns of in rows of asterisks
    assert "SetuptoolsWarning" not in said and "DeprecationWarning" not in said and "*****" not in said
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheel(tmp_path_factory.mktemp("built"), None)


def test_one_wheel_serves_every_python_of_a_platform(built: Path, tmp_path: Path) -> None:
    if not COMPILER:
        pytest.skip("no C++ compiler")
    assert "-py3-none-" in built.name and not built.name.endswith("-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extract(LIBRARY, tmp_path)
    code = f"""
from pathlib import Path
from toolkit import kernels
kernels.LIBRARY = Path({str(tmp_path / LIBRARY)!r})
print(kernels.kernels_state())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(True, 'kernels with ")


def test_without_a_compiler_the_package_is_whole_but_for_the_kernels(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel(tmp_path, "no-such-compiler-here")) as archive:
        names = archive.namelist()
    assert LIBRARY not in names and "toolkit/kernels/__init__.py" in names
    assert "toolkit/templates/model_card.md" in names


@pytest.fixture(scope="module")
def installed(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment with the wheel in it, which sees the libraries of this one but not its toolkit."""
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip()
    # A .pth file's folders come last on the path, and .pth files in them are not read.
    Path(site, "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "-q", "--no-deps", "--no-index", str(built)]
    subprocess.run(pip, check=True, capture_output=True)
    return folder / "venv"


def call(environment: Path, folder: Path, *command: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = [str(environment / "bin" / command[0]), *command[1:]]
    return subprocess.run(program, cwd=folder, env=kept, capture_output=True, text=True)


def test_an_installed_wheel_runs_from_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    where = call(installed, tmp_path, "python", "-c", "import toolkit; print(toolkit.__file__)")
    assert where.stdout.startswith(str(installed))
    assert "Commands:" in call(installed, tmp_path, "toolkit", "--help").stdout
    started = call(installed, tmp_path, "toolkit", "init")
    assert started.returncode == 0, started.stderr
    sample = (tmp_path / "data/sample.csv").read_bytes()
    assert sample == (REPOSITORY / "data/sample.csv").read_bytes()
    examined = call(installed, tmp_path, "toolkit", "doctor", "--json", "--offline")
    answer = json.loads(examined.stdout.splitlines()[-1])
    assert examined.returncode == (0 if answer["ok"] else 3), examined.stderr
    checks = {check["name"]: check for check in answer["checks"]}
    assert checks["libraries"]["ok"] is True, checks["libraries"]
    assert checks["data"]["ok"] is True
    if COMPILER:
        assert checks["quantizer"]["found"].startswith("kernels with ")


def test_an_installed_wheel_says_whose_it_is_and_that_it_has_types(installed: Path, tmp_path: Path) -> None:
    code = """
from importlib import metadata, resources
found = metadata.metadata("medassist-toolkit")
print(found["Name"], resources.files("toolkit").joinpath("py.typed").is_file())
print(sorted({file.parts[0] for file in metadata.files("medassist-toolkit")} - {".."}))
"""
    said = call(installed, tmp_path, "python", "-c", code)
    assert said.stdout.splitlines() == [
        "medassist-toolkit True",
        f"['medassist_toolkit-{__version__}.dist-info', 'toolkit']",
    ], said.stderr
