"""The package's own build compiles the kernels where it can, and is whole where it cannot."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

LIBRARY = "toolkit/kernels/libquantize.so"


def wheel(folder: Path, compiler: str | None) -> Path:
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source / name)
    shutil.copytree(REPOSITORY / "toolkit", source / "toolkit", ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    environment = {**os.environ, **({"CXX": compiler} if compiler else {})}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", str(folder / "dist")]
    subprocess.run(command, cwd=source, env=environment, check=True, capture_output=True)
    (built,) = (folder / "dist").iterdir()
    return built


@pytest.mark.slow
def test_one_wheel_serves_every_python_of_a_platform(tmp_path: Path) -> None:
    if not any(map(shutil.which, ("c++", "g++", "clang++"))):
        pytest.skip("no C++ compiler")
    built = wheel(tmp_path, None)
    assert "-py3-none-" in built.name and not built.name.endswith("-any.whl")
    with zipfile.ZipFile(built) as archive:
        archive.extract(LIBRARY, tmp_path)
    code = f"""
from pathlib import Path
from toolkit import kernels
kernels.LIBRARY = Path({str(tmp_path / LIBRARY)!r})
print(kernels.state())
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("(True, 'kernels with ")


def test_without_a_compiler_the_package_is_whole_but_for_the_kernels(tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel(tmp_path, "no-such-compiler-here")) as archive:
        names = archive.namelist()
    assert LIBRARY not in names and "toolkit/kernels/__init__.py" in names
