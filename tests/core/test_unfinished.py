"""What a stage was about to put in place is known as its own afterwards, and nothing else is."""

import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.properties import first_fast
from toolkit.core.errors import ToolkitError, explain
from toolkit.core.file_changes import foreign_outputs
from toolkit.core.files import writing, writing_folder
from toolkit.core.run_folder import RunFolder, heal, locked
from toolkit.core.together import write_together
from toolkit.core.unfinished import noted, noting, settle


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    (tmp_path / "r").mkdir()
    return RunFolder(tmp_path / "r", "r")


def in_a_fork(work: Callable[[], Any]) -> int:
    """Call a function in a fork; returns its exit code, or less than 0 for the signal that ended it."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def dying_after(number: int, name: str = "replace") -> None:
    """Let this process kill itself right after so many renames."""
    usual, left = getattr(os, name), [number]

    def call(*given: Any, **options: Any) -> Any:
        found = usual(*given, **options)
        left[0] -= 1
        if left[0] == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(os, name, call)


def write_data(folder: RunFolder, text: str) -> None:
    with noting(folder, "prepare"), writing_folder(folder.data) as fresh:
        (fresh / "train.jsonl").write_text(text)


def test_a_file_of_a_dead_stage_is_its_own(folder: RunFolder) -> None:
    with noting(folder, "export"), writing(folder.gguf("F16")) as file:
        file.write(b"new")
    assert foreign_outputs(None, folder, [folder.gguf("F16")]) == ["gguf/r-F16.gguf"]
    assert foreign_outputs(None, folder, [folder.gguf("F16")], noted(folder, "export")) == []
    assert noted(folder, "prepare") == []


def test_what_the_user_wrote_since_is_not(folder: RunFolder) -> None:
    write_data(folder, "ours")
    folder.split_file("train").write_text("mine")
    assert foreign_outputs(None, folder, [folder.split_file("train")], noted(folder, "prepare")) == ["data/train.jsonl"]


def test_two_deaths_in_a_row_leave_both_known(folder: RunFolder) -> None:
    write_data(folder, "first")
    kept = folder.split_file("train").read_bytes()
    write_data(folder, "second")
    for content in (kept, b"second"):
        folder.split_file("train").write_bytes(content)
        assert not foreign_outputs(None, folder, [folder.split_file("train")], noted(folder, "prepare"))


def test_the_note_stands_before_the_rename(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, list[str]]] = []
    usual = Path.replace

    def replace(path: Path, target: Path) -> Path:
        seen.append((target.name, [file.path for file in noted(folder, "prepare")]))
        return usual(path, target)

    monkeypatch.setattr(Path, "replace", replace)
    write_data(folder, "x")
    assert seen == [(".prepare.unfinished.json", []), ("data", ["data/train.jsonl"])]


@pytest.mark.parametrize("text", ["", "[]", '{"files": [1]}', '{"files": 3}', "\xff", '{"files": [{"path": "a"}]}'])
def test_a_damaged_note_is_no_note(folder: RunFolder, text: str) -> None:
    (folder.path / ".export.unfinished.json").write_text(text, encoding="latin-1")
    assert noted(folder, "export") == []
    with noting(folder, "export"), writing(folder.gguf("F16")) as file:
        file.write(b"new")
    assert [file.path for file in noted(folder, "export")] == ["gguf/r-F16.gguf"]
    settle(folder, "export")
    assert noted(folder, "export") == []


def test_files_elsewhere_are_not_noted(folder: RunFolder, tmp_path: Path) -> None:
    with noting(folder, "prepare"), writing(tmp_path / "cached") as file:
        file.write(b"x")
    assert not list(folder.path.iterdir())


@pytest.mark.parametrize("died_after", [1, 2, 3])
def test_a_folder_that_was_moved_away_is_healed_by_a_reader(folder: RunFolder, died_after: int) -> None:
    write_data(folder, "former")
    settle(folder, "prepare")

    def work() -> None:
        dying_after(died_after)
        write_data(folder, "new")

    assert in_a_fork(work) == -signal.SIGKILL
    heal(folder)
    assert folder.split_file("train").read_text() == ("new" if died_after == 3 else "former")
    assert not list(folder.path.glob(".data.old"))


def test_a_folder_that_cannot_be_renamed_is_put_back_at_once(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_data(folder, "former")
    usual = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if Path(target).name == "data" and Path(source).name.endswith(".part"):
            raise OSError(5, "Input/output error", str(source), None, str(target))
        usual(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError) as problem:
        write_data(folder, "new")
    assert problem.value.filename == str(folder.data)
    assert folder.split_file("train").read_text() == "former"
    assert [path.name for path in folder.path.iterdir() if path.suffix in (".part", ".old")] == []


def test_nobody_heals_what_another_is_at_work_on(folder: RunFolder) -> None:
    (folder.path / ".data.old").mkdir()
    with locked(folder):
        heal(folder)
        assert (folder.path / ".data.old").is_dir()
    heal(folder)
    assert folder.data.is_dir()


def test_healing_makes_no_folder(tmp_path: Path) -> None:
    heal(RunFolder(tmp_path / "no" / "r", "r"))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("former", [True, False])
@pytest.mark.parametrize("died_after", range(1, 7))
@pytest.mark.parametrize("name", first_fast(["replace", "unlink", "fsync"]))
def test_two_files_change_together_or_not_at_all(folder: RunFolder, died_after: int, former: bool, name: str) -> None:
    texts = {folder.report: "new report", folder.model_card: "new card"}
    if former:
        folder.report.write_text("old report")
        folder.model_card.write_text("old card")

    def work() -> None:
        dying_after(died_after, name)
        write_together(texts)

    ended = in_a_fork(work)
    heal(folder)
    there = {path.read_text() if path.exists() else "" for path in texts}
    assert there in ({"new report", "new card"}, {"old report", "old card"} if former else {""})
    assert ended in (0, -signal.SIGKILL)
    write_together(texts)
    assert {path.read_text() for path in texts} == {"new report", "new card"}
    with locked(folder):
        pass
    left = {path.name for path in folder.path.iterdir() if path.suffix not in (".part", ".lock")}
    assert left <= {"report.json", "README.md", ".lock"}


@pytest.mark.parametrize("failing", [1, 2, 3, 4])
def test_a_failing_rename_leaves_both_as_they_were(
    folder: RunFolder, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.report.write_text("old report")
    folder.model_card.write_text("old card")
    usual, left = os.replace, [failing]

    def replace(source: Any, target: Any, **options: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise OSError(28, "No space left on device", str(source), None, str(target))
        usual(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(OSError) as problem:
        write_together({folder.report: "new report", folder.model_card: "new card"})
    assert ".part" not in str(problem.value.filename)
    assert (folder.report.read_text(), folder.model_card.read_text()) == ("old report", "old card")
    assert sorted(path.name for path in folder.path.iterdir()) == ["README.md", "report.json"]


def test_a_file_system_without_links_keeps_copies(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.report.write_text("old report")

    def no_links(*_: Any, **__: Any) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", no_links)
    write_together({folder.report: "new report", folder.model_card: "new card"})
    assert folder.report.read_text() == "new report"


@pytest.mark.parametrize("call", ["write", "fsync"])
def test_an_error_of_write_or_fsync_names_the_file(
    folder: RunFolder, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if call == "fsync":

        def full(_: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
    writers: list[Callable[[], None]] = [
        lambda: write_together({folder.report: "a", folder.model_card: "b"}),
        lambda: write_one(folder.report, call),
        lambda: write_data(folder, "x"),
    ]
    for write in writers:
        with pytest.raises(OSError) as problem:
            write()
            raise OSError(28, "No space left on device", str(folder.report))  # where only fsync fails
        found = explain(problem.value)
        assert found is not None and str(folder.path) in found.message and ".part" not in found.message
        shutil.rmtree(folder.path)
        folder.path.mkdir()


def write_one(path: Path, call: str) -> None:
    with writing(path) as file:
        file.write(b"x")
        if call == "write":
            raise OSError(28, "No space left on device")


def test_an_error_of_the_network_is_not_one_of_the_file(folder: RunFolder) -> None:
    with pytest.raises(ConnectionError) as problem, writing(folder.modelfile):
        raise ConnectionResetError(104, "Connection reset by peer")
    assert problem.value.filename is None
    with pytest.raises(ToolkitError), writing(folder.modelfile):
        raise ToolkitError("x")


@pytest.mark.parametrize("name", ["results.json", "./results.json", "/sys/results.json"])
def test_what_cannot_be_begun_names_the_file_as_it_was_given(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the temporary file next to it, whether a path is relative or whole."""
    monkeypatch.chdir("/sys")  # root may write nothing there, either
    path = Path(name)
    with pytest.raises(OSError) as file, writing(path):
        pass
    with pytest.raises(OSError) as folder, writing_folder(path):
        pass
    assert [file.value.filename, folder.value.filename] == [str(path)] * 2
