"""What a run does besides its stages: status, pages, an evaluation's preview, the clinicians' sheet and votes."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.pipeline.findings import StageState, Status, unmeasured_of
from toolkit.pipeline.freshness import check_stages_before, state_beside, whole_state

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.run_folder import RunFolder
    from toolkit.report.compare import BothRuns


def pages(config: "Config", folder: "RunFolder", *, force: bool) -> tuple[Path, Path | None]:
    """Write the page and the model card, and say which files are damaged; the card is None where there is none yet."""
    from toolkit.core.run_folder import locked
    from toolkit.report import write_pages

    with locked(folder):
        written, damaged = write_pages(config, folder, whole_state(config, folder), force=force)
    for problem in damaged:
        console.warn(f"{problem}; the page says that it is missing")
    return folder.page, folder.model_card if folder.model_card in written else None


def comparison(one: tuple["Config", "RunFolder"], other: tuple["Config", "RunFolder"]) -> tuple[Path, "BothRuns"]:
    """Compare two runs, and write the page into the second one's folder; raises ToolkitError if they are the same."""
    from toolkit.core.run_folder import locked
    from toolkit.report import gather_run, write_comparison

    first, second = one[1], other[1]
    if first.path.resolve() == second.path.resolve():
        raise ToolkitError(f"`{first.path}` is named twice", hint="name two runs", exit_code=USAGE)
    facts = [gather_run(config, folder, whole_state(config, folder)) for config, folder in (one, other)]
    page = second.path / f"compare-{first.name}.html"
    with locked(second):
        return page, write_comparison(facts[0], facts[1], page)


def foresee(config: "Config", folder: "RunFolder", *, force: bool) -> dict[str, Any]:
    """Say what an evaluation would ask; raises ToolkitError where a stage before it is out of date."""
    from toolkit.evaluate.preview import foreseen
    from toolkit.model import base_choice

    check_stages_before("evaluate", config, folder)
    found, shards = base_choice.choose_base(config.model, config.export)
    return foreseen(config, folder, found, kept=shards is None, force=force)


def sheet(config: "Config", folder: "RunFolder", *, dry_run: bool) -> dict[str, Any]:
    """Write the sheet of the last evaluation's answers, and say where a newer evaluation is due."""
    from toolkit.core.run_folder import locked
    from toolkit.evaluate.evaluation import read_evaluation
    from toolkit.evaluate.sheet import write_sheet

    found = read_evaluation(folder)
    if why := state_beside(config, folder)["evaluate"]:
        console.warn(f"the answers are those of the last evaluation, which is out of date: {why}")
    if dry_run:
        return {"would_write": [str(path) for path in (folder.review, folder.review_table, folder.review_key)]}
    with locked(folder):
        return write_sheet(folder, found, config.export.default)


def votes(folder: "RunFolder", files: list[Path], *, dry_run: bool) -> dict[str, Any]:
    """Count votes on the last evaluation's answers, and keep the count there, with the judge's agreement."""
    from toolkit.core.run_folder import locked
    from toolkit.evaluate.evaluation import amend, check_unchanged, read_evaluation
    from toolkit.evaluate.judge import agreement_with_votes
    from toolkit.evaluate.votes import count_votes, say_who_is_left_out

    if dry_run:
        check_unchanged(folder)
        return count_votes(folder, read_evaluation(folder), files)
    with locked(folder):
        check_unchanged(folder)
        evaluation = read_evaluation(folder)
        found = count_votes(folder, evaluation, files)
        say_who_is_left_out(evaluation["votes"], found)
        judge = evaluation["judge"]
        if judge is not None:
            judge = {**judge, "agreement_with_votes": agreement_with_votes(judge, found)}
        amend(folder, votes=found, judge=judge)
    return found


def status(config: "Config", folder: "RunFolder", heard: Callable[[], tuple[str, ...]]) -> Status:
    """Say what is fresh, stale or not run, and what the Ollama server holds; `heard` are the warnings of the call."""
    from toolkit.core.manifest import read_manifest
    from toolkit.register.status import server_state

    manifest, stages = read_manifest(folder), {}
    for name, why in whole_state(config, folder).items():
        record = manifest.stages.get(name)
        word = "not run" if record is None else "stale" if why else "fresh"
        ran = (record.finished, record.seconds, record.warning) if record else ("", None, "")
        stages[name] = StageState(word, why, *ran)
    try:
        held = server_state(config, manifest)
    except ToolkitError as exc:  # the status is shown also where the server fails
        held = {"problem": exc.message}
    unmeasured = unmeasured_of(manifest, validated=stages["validate"].state == "fresh")
    return Status(config.run.name, folder.path, manifest.run_id, stages, held, unmeasured, heard())


def modelfile(config: "Config", folder: "RunFolder", command: str) -> str:
    """Return the text for `ollama create -f`; raises ToolkitError where no model was trained, by `command`."""
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer
    from toolkit.register import modelfile_text

    if not folder.adapter.is_dir():
        raise ToolkitError(f"there is no trained model in `{folder.path}`", hint=f"run `{command}` first")
    eos = load_tokenizer(folder.adapter, prompt_format(config.prompt)).eos_text
    return modelfile_text(config, folder, eos)
