"""What systems answered is kept, also where an evaluation was interrupted and the last line cut off."""

import errno
import os
from pathlib import Path

import pytest

from toolkit.core.errors import ToolkitError, explain
from toolkit.evaluate.journal import journal, key_of, read_journal


def interrupted(path: Path, **values: object) -> None:
    with pytest.raises(KeyboardInterrupt), journal(path) as kept:
        for key, value in values.items():
            kept.put(key, value)
        raise KeyboardInterrupt


def test_what_was_done_is_there_again(tmp_path: Path) -> None:
    path = tmp_path / "run/.answers.jsonl"
    interrupted(path, a={"text": "体温\u2028\ud83e", "tokens": 3}, b=1.5)
    with journal(path) as kept:
        assert kept.get("a") == {"text": "体温\u2028\ud83e", "tokens": 3} and kept.get("b") == 1.5
        assert kept.get("c") is None
    assert read_journal(path) == kept.values and len(kept.values) == 2


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_line_that_was_cut_off_is_done_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "answers.jsonl"
    interrupted(path, a=1, b="a long text")
    path.write_bytes(path.read_bytes()[:-cut])
    interrupted(path, c=3)
    with journal(path) as kept:
        assert kept.values == {"a": 1, "c": 3}


def test_force_begins_anew(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    interrupted(path, a=1)
    with pytest.raises(KeyboardInterrupt), journal(path, fresh=True) as kept:
        assert kept.get("a") is None
        raise KeyboardInterrupt
    assert path.read_bytes() == b""


def test_a_damaged_journal_is_said(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    path.write_text("[1]\n")
    with pytest.raises(ToolkitError, match="is damaged") as caught, journal(path):
        pass
    assert "--force" in caught.value.hint


def test_a_full_disk_names_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = tmp_path / "answers.jsonl"
    with pytest.raises(OSError) as caught, journal(path) as kept:
        monkeypatch.setattr(os, "write", full)
        kept.put("a", 1)
    said = explain(caught.value)
    assert said is not None and said.message == f"the disk is full: {path}"


def test_only_results_of_systems_that_are_still_so_are_kept(tmp_path: Path) -> None:
    path, owners = tmp_path / "answers.jsonl", ["a" * 64, "b" * 64, "judge"]
    with journal(path) as kept:
        for owner in (*owners, "c" * 64):
            kept.put(key_of(owner, "体温"), {"of": owner})
        kept.put("a key of a former version", 1)
        kept.keep(["a" * 64, "judge"])
    assert read_journal(path) == {key_of(owner, "体温"): {"of": owner} for owner in ("a" * 64, "judge")} == kept.values
    with journal(path) as kept:
        kept.keep(["b" * 64])
    assert path.read_bytes() == b""


def test_a_key_depends_on_all_its_parts() -> None:
    assert len({key_of("a", 1), key_of("a", "1"), key_of("a"), key_of("b", 1), key_of("a", 1, None)}) == 5
    assert key_of("a", [1, "é"]) == key_of("a", [1, "é"])
