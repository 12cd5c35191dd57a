"""A process of its own imports what this one does, and nothing from the folder in which the user stands."""

import subprocess
from pathlib import Path

import pytest

from toolkit.core.other_process import python_command


def said(code: str) -> str:
    return subprocess.run(python_command(code), capture_output=True, text=True, check=True).stdout.strip()


def test_a_library_is_not_taken_from_the_current_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    assert said("import json\nprint(json.dumps([1]))") == "[1]"


def test_a_package_is_found_where_this_process_finds_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    place = tmp_path / "with 'quotes' and ü"
    place.mkdir()
    (place / "only_here.py").write_text("VALUE = 7")
    monkeypatch.syspath_prepend(str(place))
    monkeypatch.delenv("PYTHONPATH", raising=False)
    assert said("import only_here, toolkit\nprint(only_here.VALUE)") == "7"
