"""What tests use from outside the repository is skipped where it cannot be, and missed where it should be."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ollama_binary
from tests.support import ollama_server, outside
from tests.support.places import REPOSITORY

REAL = "end_to_end or real_base or real_medquad"  # every test that reads MedQuAD, but for those of the prompts


@pytest.fixture
def alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A checkout without the shared folder, and without a variable that names anything."""
    for name in ("TOOLKIT_TEST_MEDQUAD", "TOOLKIT_TEST_OLLAMA", "TOOLKIT_TEST_OLLAMA_INSTALL", "CI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(outside, "SHARED", tmp_path / "shared")
    return tmp_path


@pytest.mark.parametrize("ci", ["", "true"])
def test_a_checkout_alone_skips_and_says_what_to_name(alone: Path, monkeypatch: pytest.MonkeyPatch, ci: str) -> None:
    monkeypatch.setenv("CI", ci)
    with pytest.raises(pytest.skip.Exception, match="name it with TOOLKIT_TEST_MEDQUAD"):
        outside.medquad()
    with pytest.raises(pytest.skip.Exception, match="name it with TOOLKIT_TEST_OLLAMA or"):
        ollama_binary()


def test_what_is_missing_in_the_shared_folder_fails_under_ci(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (alone / "shared").mkdir()
    with pytest.raises(pytest.skip.Exception):
        outside.medquad()
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match=r"medquad-2479\.csv"):
        outside.medquad()
    with pytest.raises(pytest.fail.Exception, match="an Ollama server"):
        ollama_binary()


def test_a_wrong_name_fails_and_a_right_one_is_taken(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOOLKIT_TEST_MEDQUAD", str(alone / "mine.csv"))
    with pytest.raises(pytest.fail.Exception, match=r"mine\.csv"):
        outside.medquad()
    (alone / "mine.csv").touch()
    assert outside.medquad() == alone / "mine.csv"
    monkeypatch.setenv("TOOLKIT_TEST_OLLAMA", str(alone / "ollama"))
    with pytest.raises(pytest.fail.Exception, match="an Ollama server"):
        ollama_binary()
    (alone / "ollama").touch()
    assert ollama_binary() == alone / "ollama"


def test_a_script_that_builds_a_server_can_be_named(alone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    script = alone / "build.sh"
    script.write_text(f'echo "{alone}/$1/ollama"\n')
    monkeypatch.setenv("TOOLKIT_TEST_OLLAMA_INSTALL", str(script))
    monkeypatch.setenv("PATH", os.defpath)
    monkeypatch.setenv("CI", "true")
    assert ollama_server.find_ollama() == alone / ollama_server.VERSION / "ollama"


@pytest.mark.slow
def test_tests_that_need_the_outside_skip_in_a_copy_elsewhere(tmp_path: Path) -> None:
    """With CI=true, where a missing library would be a failure."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(REPOSITORY / "tests", tmp_path / "copy/tests", ignore=ignored)
    for name in ("data", "toolkit", "pyproject.toml"):
        (tmp_path / "copy" / name).symlink_to(REPOSITORY / name)
    named = ("TOOLKIT_TEST_MEDQUAD", "TOOLKIT_TEST_OLLAMA", "TOOLKIT_TEST_OLLAMA_INSTALL", "PYTEST_ADDOPTS")
    kept = {name: value for name, value in os.environ.items() if name not in named}
    chosen = ["tests/test_end_to_end.py", "tests/validate/test_real.py", "tests/prepare/test_prepare.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-n0", "-m", "", "-rs", "-p", "no:cacheprovider", *chosen, "-k", REAL],
        cwd=tmp_path / "copy",
        env={**kept, "CI": "true", "PYTHONPATH": str(tmp_path / "copy")},
        capture_output=True,
        text=True,
    )
    last = done.stdout.splitlines()[-1]
    assert done.returncode == 0 and "skipped" in last and "passed" not in last, done.stdout
    assert "the real data" in done.stdout and "TOOLKIT_TEST_MEDQUAD" in done.stdout
