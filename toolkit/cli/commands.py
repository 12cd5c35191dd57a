"""The verbs: each parses, calls one stage, prints its result and names the next step."""

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from toolkit import pipeline
from toolkit.cli.options import as_command, verb
from toolkit.core import console
from toolkit.core.errors import MISSING, USAGE, ToolkitError

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.run_folder import RunFolder


def _load(path: str, overrides: tuple[str, ...]) -> "tuple[Config, RunFolder]":
    from toolkit.core.config_file import load_config
    from toolkit.core.run_folder import folder_of

    config = load_config(Path(path), overrides)
    return config, folder_of(config)


def _command(name: str, tail: str = "") -> str:
    """Write the command for a next step, with the settings that this call was given."""
    given = click.get_current_context().params
    words = ["toolkit", name]
    if given["path"] != "toolkit.toml":
        words += ["-c", given["path"]]
    for override in given["overrides"]:
        words += ["--set", override]
    if given["offline"]:
        words.append("--offline")
    return shlex.join(words) + tail


@verb(writes=True, config=False)
@click.argument("directory", default=".", metavar="[DIR]")
@click.option("--data", metavar="FILE", help="Your data file: named in the settings, which are in its language.")
def init(directory: str, dry_run: bool, force: bool, data: str | None) -> None:
    """Write a commented toolkit.toml and sample data."""
    from toolkit.init import start

    language = ""
    if data is not None:
        from toolkit.prepare.language import file_language

        language = file_language(Path(data))
    source = None if data is None else Path(data)
    written = start(Path(directory), dry_run=dry_run, force=force, data=source, language=language)
    names = [str(path) for path in written]
    found = {} if data is None else {"language": language}
    console.result({"would_write" if dry_run else "written": names, **found}, "\n".join(names))
    if data is not None:
        _say_language(data, language)
    if not dry_run:
        where = "" if directory == "." else f"cd {directory} && "
        console.next_step(f"{where}toolkit doctor")


def _say_language(data: str, language: str) -> None:
    from toolkit.prompt.languages import SENTENCES, language_name

    if not language:
        console.info(f"{data}: the language of the answers is not sure, so the prompt is in English ([prompt])")
        return
    name = language_name(language)
    if language == "en" or language in SENTENCES:
        console.info(f"{data}: the answers are in {name}, and so is the prompt ([prompt])")
    else:
        console.warn(
            f"{data}: the answers are in {name}, and the prompt asks for it; write prompt.instruction, "
            f"validate.questions and validate.instruction in {name} too"
        )


@verb()
def doctor(path: str, overrides: tuple[str, ...]) -> None:
    """Check this machine for the configured run.

    Tools, base model, data, memory and disk (both computed), Ollama; each failing check has its fix.
    """
    from toolkit.doctor import checks_table
    from toolkit.doctor import doctor as examine

    config, folder = _load(path, overrides)
    checks = examine(config, folder, offline=_offline(), stages=pipeline.records(pipeline.STAGES))
    failed = [check for check in checks if check.ok is False]
    listed = [{"name": c.name, "ok": c.ok, "found": c.found, "fix": c.fix} for c in checks]
    if failed:
        if not console.as_json():
            console.result({}, checks_table(checks))
        raise ToolkitError(
            f"{len(failed)} of {len(checks)} checks failed: {', '.join(check.name for check in failed)}",
            hint=failed[0].fix,
            exit_code=MISSING,
            details={"checks": listed},
        )
    console.result({"checks": listed}, checks_table(checks))
    console.next_step(_command("run"))


def _offline() -> bool:
    return os.environ.get("HF_HUB_OFFLINE") == "1"


def _stage(
    name: str,
    path: str,
    overrides: tuple[str, ...],
    dry_run: bool,
    force: bool,
    *,
    gpus: int = 1,
    replace: tuple[str, ...] = (),
) -> None:
    from toolkit.cli import summary
    from toolkit.core.run_folder import locked

    config, folder = _load(path, overrides)
    if dry_run:
        console.result(*summary.preview([name], config, folder))
        return
    with locked(folder):
        console.log_to(folder.log)
        if name == "train" and (force or not pipeline.is_fresh(name, config, folder)):
            _check_first(config, folder, (name,))
        options: dict[str, Any] = {"gpus": gpus, "replace": replace}
        done = pipeline.perform(name, config, folder, force=force, offline=_offline(), **options)
    if done.fresh:
        console.info(f"{name}: fresh, skipped (--force does it again)")
    console.result(*summary.of(done, folder))
    following = [*pipeline.STAGES, ""][[*pipeline.STAGES].index(name) + 1]
    console.next_step(_command(following) if following else f'ollama run {config.ollama.name or config.run.name} "…"')


def stage_verb(name: str) -> click.Command:
    """Make the verb of a stage that needs no options of its own."""

    def perform(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
        _stage(name, path, overrides, dry_run, force)

    perform.__name__, perform.__doc__ = name, pipeline.STAGES[name][0]
    return as_command(perform, writes=True)


def _check_first(config: "Config", folder: "RunFolder", stages: tuple[str, ...]) -> None:
    """Let doctor look before hours are spent; a check that fails ends the run."""
    if not stages:
        return
    from toolkit.doctor import doctor as examine

    checks = examine(config, folder, offline=_offline(), stages=pipeline.records(stages))
    failed = [check for check in checks if check.ok is False]
    if failed:
        listed = "\n".join(f"  {check.name}: {check.found}" for check in failed)
        raise ToolkitError(
            f"this machine cannot do the configured run:\n{listed}", hint=failed[0].fix, exit_code=MISSING
        )


@verb(writes=True)
@click.option("--gpus", type=click.IntRange(min=1), default=1, show_default=True, help="Number of GPUs.")
def train(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool, gpus: int) -> None:
    """Fine-tune the base model with LoRA.

    An interrupted run goes on where it was; Ctrl-C saves first. `accelerate launch -m toolkit train` works too, with
    what `accelerate config` wrote: DDP, FSDP2, DeepSpeed, several machines.
    """
    from toolkit.train import launch, parallel

    if parallel.rank() > 0:
        launch.follow(*_load(path, overrides))
        return
    try:
        _stage("train", path, overrides, dry_run, force, gpus=gpus)
    finally:
        parallel.dismiss()


@verb(writes=True)
@click.option("--adapter", metavar="DIR", help="An adapter trained elsewhere, instead of this run's; or none.")
@click.option("--base", metavar="DIR|GGUF|ID", help="Its base model; default: the one that the adapter names.")
@click.option("--model", metavar="DIR|GGUF|ID", help="A whole fine-tuned model, instead of an adapter.")
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
    """Merge, and write all GGUF quantizations in one pass.

    With --adapter, an adapter trained elsewhere is merged into its base, outside any run folder; with --model, a whole
    model is exported as it is.
    """
    from toolkit.cli import summary
    from toolkit.export import standalone

    whole = adapter is not None and adapter.lower() == "none"
    if model is not None and (base is not None or (adapter is not None and not whole)):
        raise ToolkitError(
            "--model is a whole model, which goes without --adapter and --base",
            hint="--adapter DIR --base DIR merges an adapter",
            exit_code=USAGE,
        )
    if model is not None or whole:
        order = standalone.of_model(model or base, path, overrides)
    elif adapter is None:
        foreign = [("--base", base), ("--quant", quantizations), ("--output", output if form == "gguf" else None)]
        given = [name for name, value in foreign if value]
        if given:
            raise ToolkitError(
                f"{given[0]} goes with --adapter or --model",
                hint="to change this run's export, use --set, for example --set export.quantizations=Q8_0,F16",
                exit_code=USAGE,
            )
        if form == "gguf":
            _stage("export", path, overrides, dry_run, force)
            return
        order = standalone.order_of_run(*_load(path, overrides))
    else:
        order = standalone.of_adapter(Path(adapter), base, path, overrides)
    figures = standalone.carry_out(order, form, quantizations, output, dry_run=dry_run, force=force)
    console.result(*summary.of_export(figures))
    if "next" in figures:
        console.next_step(figures["next"])


@verb(writes=True)
def validate(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Compare each GGUF with the trained model.

    Writes the report and the model card; exit code 4 if a quantization is too far off.
    """
    _stage("validate", path, overrides, dry_run, force)


@verb(writes=True)
@click.option("--rollback", is_flag=True, help="Bring back NAME:previous; a second time undoes it.")
@click.option(
    "--replace", multiple=True, metavar="NAME:TAG", help="Replace this model though it is not ours; repeatable."
)
def register(
    path: str, overrides: tuple[str, ...], dry_run: bool, force: bool, rollback: bool, replace: tuple[str, ...]
) -> None:
    """Create the model in Ollama, and prove it there.

    If anything fails, the former model of that name is back. Whatever is replaced keeps a copy.
    """
    config, _ = _load(path, overrides)
    if rollback:
        _roll_back(config, dry_run, replace)
        return
    _stage("register", path, overrides, dry_run, force, replace=replace)


def _roll_back(config: "Config", dry_run: bool, replace: tuple[str, ...]) -> None:
    from toolkit.cli import summary
    from toolkit.register.rollback import roll_back

    figures = roll_back(config, dry_run=dry_run, replace=replace)
    console.result(*summary.of_rollback(figures))
    if not dry_run:
        console.info(f"`{_command('register', ' --rollback')}` undoes it")
        console.next_step(f'ollama run {figures["name"]} "…"')


@verb()
def modelfile(path: str, overrides: tuple[str, ...]) -> None:
    """Print the Modelfile for `ollama create`.

    It belongs into the run folder, beside the gguf/ it names, and gives the same model as register.
    """
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer
    from toolkit.register import modelfile_text

    config, folder = _load(path, overrides)
    if not folder.adapter.is_dir():
        raise ToolkitError(f"there is no trained model in `{folder.path}`", hint=f"run `{_command('run')}` first")
    text = modelfile_text(config, folder, load_tokenizer(folder.adapter, prompt_format(config.prompt)).eos_text)
    console.result({"modelfile": text}, text.rstrip("\n"))


@verb()
@click.argument("question")
@click.option("--instruction", metavar="TEXT", help="Instead of prompt.instruction, for example a doctor's manner.")
def ask(path: str, overrides: tuple[str, ...], question: str, instruction: str | None) -> None:
    """Ask a question, through Ollama or else llama.cpp."""
    from toolkit.ask import answer

    config, folder = _load(path, overrides)
    through, pieces = answer(config, folder, question, instruction)
    whole = ""
    for piece in pieces:
        whole += piece
        console.stream(piece)
    console.stream("\n")
    console.result({"question": question, "answer": whole, "through": through})


@verb(writes=True)
def run(path: str, overrides: tuple[str, ...], dry_run: bool, force: bool) -> None:
    """Run all stale stages, in order."""
    from toolkit.cli import summary
    from toolkit.core.run_folder import locked

    config, folder = _load(path, overrides)
    if dry_run:
        console.result(*summary.preview(list(pipeline.STAGES), config, folder))
        return
    with locked(folder):
        console.log_to(folder.log)
        stale = {stage: why for stage, why in pipeline.state(config, folder).items() if why or force}
        if not stale:
            console.result({"stages": {}, "folder": str(folder.path)}, f"all stages are fresh: {folder.path}")
            console.next_step(_command("ask", ' "…"'))
            return
        # Without a server all but registering is done, so its absence must not stop the run here.
        _check_first(config, folder, tuple(stage for stage in stale if stage != "register"))
        finished = []
        for stage in pipeline.STAGES:
            if stage == "register" and not _server_answers(config):
                break
            done = pipeline.perform(stage, config, folder, force=force, offline=_offline())
            if done.fresh:
                console.info(f"{stage}: fresh, skipped")
            else:
                console.info(summary.of(done, folder)[1])
            finished.append(done)
    console.result(*summary.of_run(finished, folder))
    console.next_step(_command("ask", ' "…"'))


def _server_answers(config: "Config") -> bool:
    """Say whether there is a server to register with; where there is none, all else is done and that is no failure."""
    from toolkit.ollama import server
    from toolkit.ollama.address import server_address

    again = f"then `{_command('register')}`"
    try:
        url = server_address(config.ollama)
    except ToolkitError as exc:
        console.warn(f"{exc.message}, so the model is not registered; {exc.hint}, {again}")
        return False
    if server.version(config.ollama) is not None:
        return True
    console.warn(
        f"no Ollama server answers at {url}, so the model is not registered; start one with `ollama serve`, {again}"
    )
    return False


@verb()
def status(path: str, overrides: tuple[str, ...]) -> None:
    """Show each stage: fresh, stale (why), or not run."""
    from toolkit.cli import summary

    config, folder = _load(path, overrides)
    reasons = pipeline.state(config, folder)
    console.result(*summary.of_status(reasons, config, folder))
    stale = [stage for stage, why in reasons.items() if why]
    console.next_step(_command("run") if stale else _command("ask", ' "…"'))
