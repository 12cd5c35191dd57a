"""Chromium for the tests: found, installed as root or with sudo, or its absence said with what to do."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY

APT = 'echo "$@" >> {calls}\n'


def call(place: Path, programs: dict[str, str], **variables: str) -> "subprocess.CompletedProcess[str]":
    """Run the script where only these programs are on PATH."""
    tools = place / "tools"
    tools.mkdir()
    for name, text in programs.items():
        (tools / name).write_text(f"#!/bin/sh\n{text}")
        (tools / name).chmod(0o755)
    environment = {"PATH": str(tools), **variables}
    return subprocess.run(
        ["/bin/bash", str(REPOSITORY / ".ci" / "chromium")], env=environment, capture_output=True, text=True
    )


@pytest.mark.parametrize("name", ["chromium", "chromium-browser", "google-chrome"])
def test_one_that_is_there_is_taken(tmp_path: Path, name: str) -> None:
    done = call(tmp_path, {name: "", "apt-get": APT.format(calls=tmp_path / "calls")}, CI="true")
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "") and not (tmp_path / "calls").exists()


def test_one_that_is_named_is_taken(tmp_path: Path) -> None:
    assert call(tmp_path, {}, CI="true", TOOLKIT_TEST_CHROMIUM="/opt/mine").returncode == 0


@pytest.mark.parametrize("user", ["0", "1000"])
def test_it_is_installed_as_root_or_with_sudo(tmp_path: Path, user: str) -> None:
    calls = tmp_path / "calls"
    sudo = f'[ "$2" = true ] && exit 0\necho sudo >> {calls}\nshift\n"$@"\n'
    done = call(tmp_path, {"id": f"echo {user}\n", "apt-get": APT.format(calls=calls), "sudo": sudo}, CI="true")
    assert done.returncode == 0, done.stderr
    lines = calls.read_text().splitlines()
    assert lines[-1] == "install -y -qq --no-install-recommends chromium"
    assert lines.count("sudo") == (0 if user == "0" else 2)


@pytest.mark.parametrize(
    ("programs", "said"),
    [
        ({"id": "echo 0\n"}, "this system has no apt-get"),
        ({"id": "echo 1000\n", "apt-get": ""}, "installing it needs root"),
        ({"id": "echo 1000\n", "apt-get": "", "sudo": "exit 1\n"}, "installing it needs root"),
        ({"id": "echo 0\n", "apt-get": "exit 100\n"}, "apt-get failed"),
    ],
)
@pytest.mark.parametrize("ci", ["true", ""])
def test_where_it_cannot_be_installed_that_is_said_and_fails_only_under_ci(
    tmp_path: Path, programs: dict[str, str], said: str, ci: str
) -> None:
    done = call(tmp_path, programs, CI=ci)
    assert done.returncode == (1 if ci else 0)
    assert said in done.stderr and "hint: install it (Debian: apt install chromium)" in done.stderr


def test_ci_and_make_call_it() -> None:
    assert "test: .installed-dev chromium" in (REPOSITORY / "Makefile").read_text()
    assert (
        os.access(REPOSITORY / ".ci" / "chromium", os.X_OK) and "make test" in (REPOSITORY / ".ci" / "run").read_text()
    )
