"""The stage's record: what makes an evaluation stale, and what is refused before anything is loaded."""

from pathlib import Path
from typing import Any

import pytest

from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.file_changes import why_stale
from toolkit.core.manifest import StageRecord, record_file
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.stage import STAGE


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    """A run with the files of a whole export, and beside it a folder of tasks and an exam."""
    run = RunFolder(tmp_path / "exports" / "r", "r")
    for path in (run.gguf("F16"), *run.adapter_files, run.split_file("test"), run.split_file("train")):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(path.name)
    run.evaluation.write_text("{}")
    for name in ("base/model.safetensors", "tasks/arc_easy/test.jsonl", "tasks/.cache/note", "exam.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    return run


def settings(root: Path, **evaluate: Any) -> Config:
    export = {"quantizations": ["F16"], "default": "F16"}
    return build({"model": {"base": str(root / "base")}, "export": export, "evaluate": evaluate})


def recorded(config: Config, folder: RunFolder) -> StageRecord:
    inputs = [record_file(path, folder) for path in STAGE.files(config, folder).inputs]
    return StageRecord(
        settings={}, inputs=inputs, outputs=[record_file(folder.evaluation, folder)],
        versions={}, seconds=0, finished="", figures={},
    )  # fmt: skip


def test_a_change_of_the_tasks_data_makes_it_stale(folder: RunFolder, tmp_path: Path) -> None:
    config = settings(tmp_path, tasks=["arc_easy"], task_folder=str(tmp_path / "tasks"))
    record, rows = recorded(config, folder), tmp_path / "tasks/arc_easy/test.jsonl"

    def why() -> str:
        files = STAGE.files(config, folder)
        return why_stale(record, folder, {}, files.inputs, files.outputs)

    (tmp_path / "tasks/.cache/note").write_text("a download notes when it was")
    assert why() == ""
    rows.write_text("other rows")
    assert why() == f"input changed: {rows}"
    rows.write_text("tasks/arc_easy/test.jsonl")
    (more := tmp_path / "tasks/arc_easy/validation.jsonl").write_text("")
    assert why() == f"inputs changed: {more}"
    more.unlink()
    assert why() == ""
    rows.unlink()
    (tmp_path / "tasks/arc_easy/other.jsonl").write_text("")
    assert why().startswith("inputs changed") and str(rows) in why()


def test_a_folder_whose_tasks_are_not_asked_is_no_input(folder: RunFolder, tmp_path: Path) -> None:
    config = settings(tmp_path, task_folder=str(tmp_path / "tasks"))
    assert not [path for path in STAGE.files(config, folder).inputs if "tasks" in path.parts]


@pytest.mark.parametrize("gone", ["tasks", "exam.jsonl"])
def test_a_run_that_was_moved_without_them_stays_fresh(gone: str, folder: RunFolder, tmp_path: Path) -> None:
    named = {"tasks": ["arc_easy"], "task_folder": str(tmp_path / "tasks"), "exam": str(tmp_path / "exam.jsonl")}
    config = settings(tmp_path, **named)
    record = recorded(config, folder)
    (tmp_path / gone).rename(tmp_path / "elsewhere")
    files = STAGE.files(config, folder)
    assert why_stale(record, folder, {}, files.inputs, files.outputs) == ""


@pytest.mark.parametrize(
    ("named", "said", "code"),
    [
        ({"exam": "absent.jsonl"}, "no exam `absent.jsonl`", MISSING),
        ({"tasks": ["arc_easy"], "task_folder": "absent"}, "names `absent`, which is no folder", USAGE),
    ],
)
def test_what_is_not_there_is_refused_first(named: dict[str, Any], said: str, code: int, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError) as caught:
        STAGE.given(settings(tmp_path, **named))
    assert said in caught.value.message and caught.value.exit_code == code
