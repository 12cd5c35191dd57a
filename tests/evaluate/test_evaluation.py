"""evaluation.json is read, written whole, and amended without making the stage stale."""

import json
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.file_changes import why_stale
from toolkit.core.manifest import Manifest, StageRecord, read_manifest, record_file, write_manifest
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate.evaluation import FIELDS, amend, read_evaluation, write_evaluation


def whole() -> dict[str, Any]:
    return {"version": 1, **dict.fromkeys(FIELDS)}


def test_what_is_written_is_read(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    with pytest.raises(ToolkitError, match="no evaluation") as caught:
        read_evaluation(folder)
    assert caught.value.exit_code == MISSING and "toolkit evaluate" in caught.value.hint
    write_evaluation(folder, whole() | {"run": "fièvre"})
    assert read_evaluation(folder)["run"] == "fièvre"
    with pytest.raises(ValueError):
        write_evaluation(folder, whole() | {"seconds": float("nan")})
    assert read_evaluation(folder)["run"] == "fièvre"


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"version": 2}, "its version is 2, not 1"),
        ({"votes": ...}, "it has no `votes`"),
        ({}, "cannot be read as JSON"),
        ({"systems": 3}, "`systems`: Input should be a valid list"),
        ({"held_out": []}, "`held_out`: "),
        ({"held_out": {"answers": [{"row": 1, "question": "Why?"}]}}, "`held_out.answers.0.answers`: Field required"),
        ({"held_out": {"answers": [{"row": 1, "question": "Why?", "answers": {"base": {}}}]}}, "answers.base.text`: "),
        ({"votes": [1]}, "`votes`: "),
        ({"votes": {"pairs": [{"a": "base"}]}}, "`votes.pairs.0.b`: Field required"),
        ({"judge": "x"}, "`judge`: "),
    ],
)
def test_a_file_that_cannot_be_used_says_why(tmp_path: Path, values: dict[str, Any], said: str) -> None:
    folder = RunFolder(tmp_path, "x")
    found = {key: value for key, value in (whole() | values).items() if value is not ...}
    folder.evaluation.write_text(json.dumps(found) if values else "{")
    with pytest.raises(ToolkitError) as caught:
        read_evaluation(folder)
    assert said in caught.value.message


def test_votes_are_added_and_the_stage_stays_fresh(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    write_evaluation(folder, whole())
    outputs = [record_file(folder.evaluation, folder)]
    record = StageRecord(settings={}, inputs=[], outputs=outputs, versions={}, seconds=1, finished="", figures={"a": 1})
    write_manifest(folder, Manifest(run_id="r", stages={"evaluate": record}))
    assert amend(folder, votes={"files": []})["votes"] == {"files": []}
    after = read_manifest(folder).stages["evaluate"]
    assert read_evaluation(folder)["votes"] == {"files": []} and after.figures == {"a": 1}
    assert why_stale(after, folder, {}, [], [folder.evaluation]) == ""
