"""A stage is one folder and one line in the pipeline's table: one is added here, and is a verb like the others."""

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

import toolkit
from toolkit import pipeline
from toolkit.cli import commands  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group

pytestmark = pytest.mark.slow

COUNT = """
from toolkit.core.manifest import Outcome
from toolkit.core.stage import Check, Stage, StageFiles

def files(config, folder):
    return StageFiles([folder.split_file("train")], [folder.path / "count.txt"])

def run(context):
    count = len(context.folder.split_file("train").read_text().splitlines())
    (context.folder.path / "count.txt").write_text(f"{count}\\n")
    return Outcome([context.folder.path / "count.txt"], {"count": count})

STAGE = Stage(
    name="count", settings=("run.name",), files=files, run=run,
    summary=lambda figures, folder: f"{figures['count']} records",
    checks=lambda there: [("fingers", lambda: Check("fingers", True, "ten", ""))],
)
"""


def test_a_stage_is_a_folder_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "more/count").mkdir(parents=True)
    (tmp_path / "more/count/stage.py").write_text(COUNT)
    monkeypatch.setattr(toolkit, "__path__", [*toolkit.__path__, str(tmp_path / "more")])
    monkeypatch.setitem(pipeline.STAGES, "count", ("Count the records.", "toolkit count"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # `--offline` sets it, and it is to be as before after this

    def call(*arguments: str) -> str:
        return CliRunner().invoke(group, [*arguments]).output

    data = tmp_path / "exports/medassist/data"
    call("init")
    assert "count" in call("--help")
    data.mkdir(parents=True)
    (data / "train.jsonl").write_text("{}\n{}\n")
    assert "toolkit count" in call("count", "--help")
    assert "2 records" in call("count")
    assert "fresh, skipped" in call("count")
    (data / "train.jsonl").write_text("{}\n")
    states = json.loads(CliRunner().invoke(group, ["status", "--json"]).stdout)["stages"]
    assert states["count"]["state"] == "stale" and "input changed" in states["count"]["why"]
    assert "fingers" in call("doctor", "--offline")
    monkeypatch.delitem(pipeline.STAGES, "count")
    shutil.rmtree(tmp_path / "more")
    assert "count" not in call("--help") and "No such command" in call("count")
