"""evaluation.json: its fields, and reading, writing and amending it."""

import json
from typing import Any

from pydantic import BaseModel, ValidationError

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.file_changes import foreign_outputs
from toolkit.core.files import write_text
from toolkit.core.manifest import read_manifest, record_file, write_manifest
from toolkit.core.parsing import read_json
from toolkit.core.run_folder import RunFolder
from toolkit.core.unfinished import noted, noting, settle

VERSION = 1


class _Answer(BaseModel):
    text: str


class _Question(BaseModel):
    row: int
    question: str
    answers: dict[str, _Answer]


class _HeldOut(BaseModel):
    answers: list[_Question] = []


class _Pair(BaseModel):
    a: str
    b: str


class _Votes(BaseModel):
    pairs: list[_Pair] = []


class _Verdict(_Pair):
    row: int
    verdict: str


class _Judge(BaseModel):
    items: list[_Verdict]


class _System(BaseModel):
    name: str
    seconds: float | None = None


class _Evaluation(BaseModel):
    """What sheet, votes, judge and preview read of it."""

    systems: list[_System] | None
    held_out: _HeldOut | None
    votes: _Votes | None
    judge: _Judge | None


FIELDS = ("systems", "held_out", "choice", "comparisons_made", "votes", "judge")


def read_evaluation(folder: RunFolder) -> dict[str, Any]:
    """Read what the last evaluation found; raises ToolkitError if there is none, or it is damaged."""
    if not folder.evaluation.is_file():
        raise ToolkitError(
            f"no evaluation `{folder.evaluation}`", hint="write it with `toolkit evaluate`", exit_code=MISSING
        )
    found = read_json(folder.evaluation)
    missing = [name for name in FIELDS if name not in found]
    what = f"it has no `{missing[0]}`" if missing else ""
    if found.get("version") != VERSION:
        what = what or f"its version is {found.get('version')!r}, not {VERSION}"
    if what := what or _damage(found):
        raise ToolkitError(
            f"`{folder.evaluation}` cannot be used: {what}", hint="write it again with `toolkit evaluate --force`"
        )
    return found


def _damage(found: dict[str, Any]) -> str:
    try:
        _Evaluation.model_validate(found)
    except ValidationError as exc:
        first = exc.errors()[0]
        return f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
    return ""


def write_evaluation(folder: RunFolder, found: dict[str, Any]) -> None:
    """Write evaluation.json whole or not at all."""
    write_text(folder.evaluation, json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def check_unchanged(folder: RunFolder) -> None:
    """Raise ToolkitError if evaluation.json is not as the stage wrote it: what is counted on it would be recorded."""
    record = read_manifest(folder).stages.get("evaluate")
    if record is not None and foreign_outputs(record, folder, [folder.evaluation], noted(folder, "evaluate")):
        raise ToolkitError(
            f"`{folder.evaluation}` has changed since `toolkit evaluate` wrote it",
            hint="restore it from a copy, or remove it and run `toolkit evaluate`: what was asked is not asked again",
        )


def amend(folder: RunFolder, **parts: Any) -> dict[str, Any]:
    """Change fields of evaluation.json, such as `votes`, and record the file anew: the stage stays fresh.

    A judge's figures change in the manifest too: the screen reads them there. Raises what `check_unchanged` raises.
    """
    check_unchanged(folder)
    found = {**read_evaluation(folder), **parts}
    with noting(folder, "evaluate"):
        write_evaluation(folder, found)
    manifest = read_manifest(folder)
    if "evaluate" in manifest.stages:
        record = manifest.stages["evaluate"]
        record.outputs[:] = [record_file(folder.evaluation, folder)]
        if "judge" in parts:
            record.figures["judge"] = judge_figures(parts["judge"])
        write_manifest(folder, manifest)
    settle(folder, "evaluate")
    return found


def judge_figures(judge: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the manifest keeps of a judge: all but what it said of each pair."""
    return {key: value for key, value in judge.items() if key != "items"} if judge else None
