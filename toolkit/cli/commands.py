"""The verbs: each parses, calls one stage, prints its result and names the next step."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from toolkit import pipeline
from toolkit.cli.options import verb
from toolkit.cli.performing import command_text, load_run, mending_command, perform_all, perform_one
from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.learned import USUAL_RATE

if TYPE_CHECKING:
    from toolkit.pipeline.run import Run


@verb(writes=True, config=False)
@click.argument("directory", default=".", metavar="[DIR]")
@click.option("--data", metavar="FILE", help="Your data file: the settings name it, and the prompt gets its language.")
def init(directory: str, dry_run: bool, force: bool, data: str | None) -> None:
    """Write a commented toolkit.toml and sample data."""
    from toolkit.cli.starting import write_start

    write_start(Path(directory), dry_run=dry_run, force=force, data=data)
    if not dry_run:
        where = "" if directory == "." else f"cd {shlex.quote(directory)} && "
        console.next_step(f"{where}toolkit doctor")


@verb()
def doctor(path: str, overrides: tuple[str, ...]) -> None:
    """Check whether this machine can do the run.

    It checks tools, base model, data, memory, disk and Ollama, and says how to fix each failing check.
    """
    found = load_run(path, overrides).doctor()
    failed = found.failed
    listed = [{"name": c.name, "ok": c.ok, "found": c.found, "fix": c.fix} for c in found.checks]
    if failed:
        if not console.as_json():
            console.result({}, str(found))
        raise ToolkitError(
            f"{len(failed)} of {len(listed)} checks failed: {', '.join(check.name for check in failed)}",
            hint=failed[0].fix,
            exit_code=MISSING,
            details={"checks": listed},
        )
    console.result({"checks": listed}, str(found))
    console.next_step(command_text("run"))


@verb(writes=True)
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
def train(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool, gpus: int) -> None:
    """Fine-tune the base model with LoRA.

    An interrupted run continues where it stopped. Ctrl-C saves a checkpoint. For DDP, FSDP2, DeepSpeed or several
    machines, run `accelerate config`, and then `accelerate launch -m toolkit train`.
    """
    from toolkit.train import launch, parallel

    if parallel.rank() > 0:
        run = load_run(path, overrides)
        launch.follow(run.config, run.folder)
        return
    try:
        perform_one("train", path, overrides, dry_run, force, gpus=gpus)
    finally:
        parallel.dismiss()


@verb(writes=True)
@click.option(
    "--adapter",
    metavar="DIR",
    help="An adapter trained elsewhere, instead of this run's; the word none exports --base as it is.",
)
@click.option("--base", metavar="DIR|GGUF|ID", help="Its base model; default: the one that the adapter names.")
@click.option("--model", metavar="DIR|GGUF|ID", help="A complete fine-tuned model, instead of an adapter.")
@click.option("--quant", "quantizations", multiple=True, metavar="NAME", help="Quantization to write; repeatable.")
@click.option("--output", metavar="DIR", help="Where the files go.")
@click.option(
    "--format",
    "form",
    type=click.Choice(("gguf", "safetensors", "lora-gguf")),
    default="gguf",
    show_default=True,
    help="GGUF files, a merged 16-bit model folder, or the adapter alone for llama.cpp.",
)
def export(
    path: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    adapter: str | None,
    base: str | None,
    model: str | None,
    quantizations: tuple[str, ...],
    output: str | None,
    form: str,
) -> None:
    """Merge the adapter, and write all GGUF files in one pass.

    With --adapter, an adapter trained elsewhere is merged into its base, outside any run folder; with --model, a whole
    model is exported as it is.
    """
    from toolkit.cli import exporting

    given = exporting.Options(adapter, base, model, quantizations, output, form)
    if given.of_run:
        perform_one("export", path, overrides, dry_run, force)
    else:
        exporting.carry_out(given, path, overrides, dry_run=dry_run, force=force)


@verb(writes=True)
def validate(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Compare each GGUF with the trained model.

    Writes the report and the model card; exit code 4 if a quantization is too far off.
    """
    perform_one("validate", path, overrides, dry_run, force)


@verb(writes=True)
@click.option(
    "--sheet", is_flag=True, help="Write a sheet on which clinicians compare answers blindly: review.html, review.csv."
)
@click.option("--votes", is_flag=True, help="Count the votes in FILES, which the sheet saved.")
@click.argument("files", nargs=-1, metavar="[FILES]...", type=click.Path(path_type=Path))
def evaluate(
    path: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    sheet: bool,
    votes: bool,
    files: tuple[Path, ...],
) -> None:
    """Ask base, trained model and GGUF files the same questions.

    evaluation.json gets their answers, compared with intervals. `toolkit run` leaves this out, because it takes long.
    """
    from toolkit.cli import evaluating

    evaluating.check_options(sheet, votes, files, force)
    if sheet:
        evaluating.write_sheet(path, overrides, dry_run)
    elif votes:
        evaluating.count_votes(path, overrides, files, dry_run)
    else:
        evaluating.perform(path, overrides, dry_run, force)


@verb(writes=True)
@click.option("--rollback", is_flag=True, help="Restore NAME:previous; a second call undoes that.")
@click.option(
    "--replace",
    multiple=True,
    metavar="NAME:TAG",
    help="Replace this model although the toolkit did not make it; repeatable.",
)
def register(
    path: str, overrides: tuple[str, ...], dry_run: bool, force: bool, rollback: bool, replace: tuple[str, ...]
) -> None:
    """Create the model in Ollama, and check it there.

    If anything fails, the earlier model of that name is restored. A replaced model is kept as a copy.
    """
    if rollback:
        _roll_back(load_run(path, overrides), dry_run, replace)
        return
    perform_one("register", path, overrides, dry_run, force, replace=replace)


def _roll_back(run: "Run", dry_run: bool, replace: tuple[str, ...]) -> None:
    from toolkit.cli import summary

    figures = run.roll_back(dry_run=dry_run, replace=replace)
    console.result(*summary.of_rollback(figures))
    if not dry_run:
        console.info(f"`{command_text('register', ' --rollback')}` undoes it")
        console.next_step(f'ollama run {figures["name"]} "…"')


@verb()
def modelfile(path: str, overrides: tuple[str, ...]) -> None:
    """Print the Modelfile for `ollama create`.

    Put it into the run's folder, next to gguf/. `ollama create` then makes the same model as `register`.
    """
    text = load_run(path, overrides).modelfile()
    console.result({"modelfile": text}, text.rstrip("\n"))


@verb()
@click.argument("question")
@click.option("--instruction", metavar="TEXT", help="Replaces prompt.instruction for this question.")
def ask(path: str, overrides: tuple[str, ...], question: str, instruction: str | None) -> None:
    """Ask a question, through Ollama or else llama.cpp."""
    answer = load_run(path, overrides).ask(question, instruction, piece=console.stream)
    console.stream("\n")
    console.result({"question": question, "answer": answer.text, "through": answer.through})


@verb(writes=True)
def run(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Run all stale stages, in order."""
    perform_all(path, overrides, dry_run, force)


@verb()
def status(path: str, overrides: tuple[str, ...]) -> None:
    """Show each stage: fresh, stale (why), or not run."""
    from toolkit.cli import summary

    run = load_run(path, overrides)
    status = run.status()
    console.result(*summary.of_status(status))
    doubtful = any(stage.warning and not stage.why for stage in status.stages.values())
    if doubtful and run.config.train.learning_rate != USUAL_RATE:
        console.next_step(mending_command(run))
    elif any(status.stages[name].why for name in pipeline.STAGES):
        console.next_step(command_text("run"))
    else:
        console.next_step(command_text("ask", ' "…"'))


@verb()
@click.option("--open", "opened", is_flag=True, help="Open the page in a browser.")
@click.option("--compare", nargs=2, metavar="RUN RUN", help="Compare two runs side by side: names, or their folders.")
@click.option("--force", is_flag=True, help="Replace a page or model card that was changed by hand.")
def report(path: str, overrides: tuple[str, ...], opened: bool, compare: tuple[str, str] | None, force: bool) -> None:
    """Write the run as one page: report.html.

    It needs no network and has no script. The model card, README.md, is written from the same figures. Every stage that
    runs writes both; --compare writes compare-RUN.html into the second run's folder.
    """
    from toolkit.cli import reporting

    page = (
        reporting.write(path, overrides, force) if compare is None else reporting.compare_runs(path, overrides, compare)
    )
    if opened:
        reporting.open_page(page)
