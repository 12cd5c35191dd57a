"""The run folder: whole-or-absent writes, freshness with its reasons, and recovery after a kill."""

import errno
import fcntl
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import run_folder
from toolkit.core.errors import ToolkitError
from toolkit.core.file_changes import foreign_outputs, seen_again, why_stale
from toolkit.core.files import writing, writing_folder
from toolkit.core.manifest import StageRecord, read_manifest, record_file, write_manifest
from toolkit.core.records import Records
from toolkit.core.run_folder import RunFolder, locked
from toolkit.core.together import write_together


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "r").mkdir()
    return RunFolder(tmp_path / "r", "r")


def record(folder: RunFolder, settings: dict[str, Any], inputs: list[Path], outputs: list[Path]) -> StageRecord:
    return StageRecord(
        settings=settings,
        inputs=[record_file(path, folder) for path in inputs],
        outputs=[record_file(path, folder) for path in outputs],
        versions={},
        seconds=1.0,
        finished="",
        figures={},
    )


def test_freshness_names_its_reason(folder: RunFolder, tmp_path: Path) -> None:
    source, result = tmp_path / "in.csv", folder.path / "out.txt"
    source.write_text("a")
    result.write_text("b")
    kept = record(folder, {"x": 1}, [source], [result])
    assert why_stale(None, folder, {}, [], []) == "not run"
    assert why_stale(kept, folder, {"x": 1}, [source], [result]) == ""
    assert why_stale(kept, folder, {"x": 2}, [source], [result]) == "settings changed: x"
    os.utime(source, ns=(1, 1))
    assert why_stale(kept, folder, {"x": 1}, [source], [result]) == ""  # touched, not changed
    source.write_text("c")
    assert "input changed" in why_stale(kept, folder, {"x": 1}, [source], [result])
    source.write_text("a")
    result.write_text("X")
    assert why_stale(kept, folder, {"x": 1}, [source], [result]) == "output changed: out.txt"
    result.unlink()
    assert why_stale(kept, folder, {"x": 1}, [source], [result]) == "output missing: out.txt"
    assert "inputs changed" in why_stale(kept, folder, {"x": 1}, [], [])


def test_a_moved_run_folder_stays_fresh(folder: RunFolder, tmp_path: Path) -> None:
    inside = folder.path / "in.txt"
    inside.write_text("a")
    kept = record(folder, {}, [inside], [inside])
    moved = RunFolder(tmp_path / "moved", "r")
    folder.path.rename(moved.path)
    assert why_stale(kept, moved, {}, [moved.path / "in.txt"], [moved.path / "in.txt"]) == ""


@pytest.mark.parametrize("change", ["gone", "moved", "moved and copied", "another", "same name, other content"])
def test_an_input_outside_may_be_gone_or_elsewhere(folder: RunFolder, tmp_path: Path, change: str) -> None:
    """On another machine the data file is missing, and a package with the base has another path."""
    (tmp_path / "site").mkdir()
    source, other = tmp_path / "in.csv", tmp_path / "site" / ("other.csv" if change == "another" else "in.csv")
    source.write_text("a")
    inside = folder.path / "in.csv"
    inside.write_text("b")
    kept = record(folder, {}, [inside, source], [])
    paths = [inside, other]
    if change == "gone":
        source.unlink()
        paths = [inside, source]
    elif change == "moved":
        source.rename(other)
    else:
        other.write_text("c" if change == "same name, other content" else "a")
    fresh = change in ("gone", "moved", "moved and copied")
    assert (why_stale(kept, folder, {}, paths, []) == "") == fresh
    inside.unlink()
    assert why_stale(kept, folder, {}, paths, []) != ""  # what an earlier stage wrote must be there


def test_copied_files_are_hashed_once(folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, result = tmp_path / "in.csv", folder.path / "out.txt"
    source.write_text("a")
    result.write_text("b")
    kept = record(folder, {}, [source], [result])
    for path in (source, result):
        os.utime(path, ns=(1, 1))
    again = seen_again(kept, folder, [source])
    monkeypatch.setattr("toolkit.core.file_changes.sha256_of", lambda path: pytest.fail(f"{path} was hashed"))
    assert why_stale(again, folder, {}, [source], [result]) == ""
    source.unlink()
    assert seen_again(again, folder, [source]) == again


@pytest.mark.parametrize("number", [errno.ENOTSUP, errno.ENOSYS, errno.ENOLCK, errno.EINVAL])
def test_a_file_system_without_locks_will_do(
    folder: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """As mounted drives may be; one that refuses for another reason ends the call."""

    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with locked(folder), writing_folder(folder.path / "adapter") as fresh:
        (fresh / "a").write_text("1")
    write_together({folder.path / "one": "1", folder.path / "two": "2"})
    assert [(folder.path / name).read_text() for name in ("adapter/a", "one", "two")] == ["1", "1", "2"]
    number = errno.EIO
    with pytest.raises(OSError, match=os.strerror(errno.EIO)), locked(folder):
        pass


def test_foreign_outputs_are_found(folder: RunFolder) -> None:
    ours, theirs = folder.path / "ours", folder.path / "theirs"
    ours.write_text("1")
    kept = record(folder, {}, [], [ours])
    assert foreign_outputs(kept, folder, [ours, theirs]) == []
    theirs.write_text("2")
    ours.write_text("changed")
    assert foreign_outputs(kept, folder, [ours, theirs]) == ["ours", "theirs"]


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_failed_write_leaves_the_former_file(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "file"
    path.write_text("former")
    with pytest.raises(type(error)), writing(path) as file:
        file.write(b"half")
        raise error
    assert path.read_text() == "former"
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_failed_folder_leaves_the_former_one(tmp_path: Path) -> None:
    target = tmp_path / "adapter"
    with writing_folder(target) as fresh:
        (fresh / "a").write_text("1")
    with pytest.raises(RuntimeError), writing_folder(target) as fresh:
        (fresh / "a").write_text("2")
        raise RuntimeError
    assert (target / "a").read_text() == "1"
    with writing_folder(target) as fresh:
        (fresh / "b").write_text("3")
    assert [entry.name for entry in target.iterdir()] == ["b"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["adapter"]


def test_sweep_clears_up_after_a_kill(folder: RunFolder) -> None:
    (folder.path / ".adapter.x1.part").mkdir()
    (folder.path / "gguf").mkdir()
    (folder.path / "gguf" / ".r-F16.gguf.x2.part").write_bytes(b"half")
    (folder.path / ".adapter.old").mkdir()
    (folder.path / ".adapter.old" / "weights").write_text("former")
    run_folder.sweep(folder)
    assert (folder.path / "adapter" / "weights").read_text() == "former"  # killed between the two renames
    assert sorted(entry.name for entry in folder.path.rglob("*")) == ["adapter", "gguf", "weights"]


def test_sweep_leaves_what_another_process_is_writing(folder: RunFolder) -> None:
    with (
        writing(folder.path / "a.gguf") as file,
        writing_folder(folder.path / "adapter") as fresh,
    ):
        file.write(b"half")
        run_folder.sweep(folder)
        (fresh / "weights").write_text("x")
    assert (folder.path / "a.gguf").read_bytes() == b"half"
    assert (folder.path / "adapter" / "weights").read_text() == "x"


def test_a_damaged_manifest_is_an_error(folder: RunFolder) -> None:
    assert read_manifest(folder).stages == {}
    folder.manifest.write_text('{"run_id": "x", "stages": {"train"')
    with pytest.raises(ToolkitError, match="damaged"):
        read_manifest(folder)


def test_the_manifest_round_trips(folder: RunFolder) -> None:
    manifest = read_manifest(folder)
    manifest.stages["prepare"] = record(folder, {"a.b": [1, "x"]}, [], [])
    write_manifest(folder, manifest)
    assert read_manifest(folder) == manifest


@pytest.mark.slow
def test_two_processes_do_not_share_a_run_folder(folder: RunFolder) -> None:
    script = (
        "import sys, time; from pathlib import Path; from toolkit.core.run_folder import RunFolder, locked\n"
        "with locked(RunFolder(Path(sys.argv[1]), 'r')):\n    print('locked', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", script, str(folder.path)], stdout=subprocess.PIPE, text=True)
    try:
        assert other.stdout is not None and other.stdout.readline() == "locked\n"
        with pytest.raises(ToolkitError, match="another toolkit"), run_folder.locked(folder):
            pass
        other.send_signal(signal.SIGKILL)
        other.wait()
        deadline = time.monotonic() + 10
        while True:  # a killed holder leaves no lock behind
            try:
                with run_folder.locked(folder):
                    break
            except ToolkitError:
                assert time.monotonic() < deadline
    finally:
        other.kill()
        other.wait()


def test_records_end_at_newlines_alone(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    rows = (f'{{"instruction": "", "input": "", "output": "{text}"}}\n' for text in ("a\u2028b\x85c", "d"))
    path.write_text("".join(rows), encoding="utf-8")
    assert [record["output"] for record in Records(path)] == ["a\u2028b\x85c", "d"]
    path.write_text('{"instruction": "", "input": "", "output": "a"}\n[1]\n')
    with pytest.raises(ToolkitError, match="line 2"):
        Records(path)
    with pytest.raises(ToolkitError, match="no prepared data"):
        Records(tmp_path / "gone.jsonl")


def test_records_of_a_file_that_became_shorter(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    lines = [f'{{"instruction": "I", "input": "{word}", "output": "{word}"}}\n' for word in "ab"]
    path.write_text("".join(lines))
    found = Records(path)
    assert [found[-1]["input"], found[0]["input"], *(one["input"] for one in found[:])] == ["b", "a", "a", "b"]
    path.write_text(lines[0])
    with pytest.raises(ToolkitError, match="became shorter"):
        _ = found[1]
