"""The verb `evaluate`: an evaluation, its preview, the clinicians' sheet, and their votes."""

from pathlib import Path

from toolkit.cli.performing import command_text, load_run
from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError


def check_options(sheet: bool, votes: bool, files: tuple[Path, ...], force: bool) -> None:
    """Raise ToolkitError for options that do not go together."""
    if sheet and votes:
        raise ToolkitError(
            "--sheet and --votes cannot be used in one call", hint="toolkit evaluate --sheet", exit_code=USAGE
        )
    if force and (sheet or votes):
        name = "--sheet" if sheet else "--votes"
        raise ToolkitError(
            f"{name} has no --force: it asks nothing, and overwrites nothing that others wrote",
            hint=f"leave out --force; to ask the systems anew, call `toolkit evaluate --force` before {name}",
            exit_code=USAGE,
        )
    if files and not votes:
        raise ToolkitError(
            f"`{files[0]}` has no use here: only --votes reads files",
            hint="toolkit evaluate --votes FILE...",
            exit_code=USAGE,
        )
    if votes and not files:
        raise ToolkitError("--votes names no file", hint="toolkit evaluate --votes FILE...", exit_code=USAGE)


def perform(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Perform the stage, or say what it would ask and how long it would take."""
    from toolkit.cli import summary

    run = load_run(path, overrides)
    if dry_run:
        from toolkit.evaluate.preview import foreseen_table

        found = run.foresee_evaluation(force=force)
        console.result({"dry_run": True, **found}, foreseen_table(found))
        return
    done = run.perform("evaluate", force=force)
    console.result(*summary.of(done, run.folder))
    console.next_step(command_text("evaluate", " --sheet"))


def write_sheet(path: str, overrides: tuple[str, ...], dry_run: bool) -> None:
    """Write the clinicians' sheet, or say what would be written."""
    run = load_run(path, overrides)
    found = run.write_sheet(dry_run=dry_run)
    if dry_run:
        console.result(found, "\n".join(found["would_write"]))
        return
    from toolkit.evaluate.sheet import shown_sentences

    console.result(found, "\n".join([*shown_sentences(found), *found["written"]]))
    console.info(
        f"give away `{run.folder.review.name}` or `{run.folder.review_table.name}`, and "
        f"keep `{run.folder.review_key.name}`, which tells the systems apart"
    )
    console.next_step(command_text("evaluate", " --votes FILE..."))


def count_votes(path: str, overrides: tuple[str, ...], files: tuple[Path, ...], dry_run: bool) -> None:
    """Count votes, and keep the count in evaluation.json unless `dry_run`."""
    from toolkit.evaluate.votes_words import votes_table

    found = load_run(path, overrides).count_votes(files, dry_run=dry_run)
    console.result({"votes": found}, votes_table(found))
