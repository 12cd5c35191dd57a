"""evaluation.json: its fields, and reading, writing and amending it."""

import json
from typing import Any

from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import write_text
from toolkit.core.manifest import read_manifest, record_file, write_manifest
from toolkit.core.parsing import read_json
from toolkit.core.run_folder import RunFolder

VERSION = 1
FIELDS = ("systems", "held_out", "choice", "comparisons_made", "votes", "judge")


def read_evaluation(folder: RunFolder) -> dict[str, Any]:
    """Read what the last evaluation found; raises ToolkitError if there is none, or it is damaged."""
    if not folder.evaluation.is_file():
        raise ToolkitError(
            f"no evaluation `{folder.evaluation}`", hint="write it with `toolkit evaluate`", exit_code=MISSING
        )
    found = read_json(folder.evaluation)
    missing = [name for name in FIELDS if name not in found]
    if found.get("version") != VERSION or missing:
        what = f"it has no `{missing[0]}`" if missing else f"its version is {found.get('version')!r}, not {VERSION}"
        raise ToolkitError(
            f"`{folder.evaluation}` cannot be used: {what}", hint="write it again with `toolkit evaluate --force`"
        )
    return found


def write_evaluation(folder: RunFolder, found: dict[str, Any]) -> None:
    """Write evaluation.json whole or not at all."""
    write_text(folder.evaluation, json.dumps(found, ensure_ascii=False, indent=1, allow_nan=False) + "\n")


def amend(folder: RunFolder, **parts: Any) -> dict[str, Any]:
    """Change fields of evaluation.json, such as `votes`, and record the file anew: the stage stays fresh.

    A judge's figures change in the manifest too: the screen reads them there.
    """
    found = {**read_evaluation(folder), **parts}
    write_evaluation(folder, found)
    manifest = read_manifest(folder)
    if "evaluate" in manifest.stages:
        record = manifest.stages["evaluate"]
        record.outputs[:] = [record_file(folder.evaluation, folder)]
        if "judge" in parts:
            record.figures["judge"] = judge_figures(parts["judge"])
        write_manifest(folder, manifest)
    return found


def judge_figures(judge: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what the manifest keeps of a judge: all but what it said of each pair."""
    return {key: value for key, value in judge.items() if key != "items"} if judge else None
