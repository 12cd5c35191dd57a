"""The stage `register`."""

from itertools import takewhile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome, StageRecord
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    files = [folder.gguf(quantization) for quantization in config.served]
    return StageFiles([*files, folder.split_file("test")], [folder.modelfile])


def _run(context: Context) -> "Outcome":
    from toolkit.core.manifest import record_file
    from toolkit.core.records import Records
    from toolkit.register import register

    config, folder, stages = context.config, context.folder, context.manifest.stages
    files = {quantization: folder.gguf(quantization) for quantization in config.served}
    known = stages["export"].outputs if "export" in stages else []
    digests = {name: record_file(path, folder, known).sha256 for name, path in files.items()}
    held_out = Records(folder.split_file("test"))
    return register(config, folder, _eos(config, folder), files, digests, held_out, replace=context.replace)


def _eos(config: "Config", folder: "RunFolder") -> str:
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    return load_tokenizer(folder.adapter, prompt_format(config.prompt)).eos_text


def _gate(context: Context) -> None:
    """Raise ToolkitError (exit 4) if a model that learned nothing would replace one that answers."""
    from toolkit.core.errors import GATE, ToolkitError
    from toolkit.core.learned import unmeasured
    from toolkit.ollama import server
    from toolkit.ollama.failures import translate_errors
    from toolkit.ollama.transaction import LATEST
    from toolkit.register.model_spec import model_name

    config, stages = context.config, context.manifest.stages
    said = [stages[name].warning for name in ("validate", "train") if name in stages and stages[name].warning]
    checked = stages["validate"].figures.get("learned") if "validate" in stages else None
    if "train" in stages and checked and checked["test"] is None:  # nothing was compared there either
        said += [text for text in (unmeasured(stages["train"].figures),) if text]
    if not said or server.version(config.ollama) is None:
        return
    name, tags = model_name(config), (LATEST, *(one.lower() for one in config.served))
    doing = translate_errors(config.ollama, "looking for the current model")
    with doing, server.http(config.ollama) as http:
        held = server.held(http)
    if any(server.listed_name(name, tag) in held for tag in tags):
        raise ToolkitError(
            f"`{name}` answers in Ollama, and this model would replace it: {said[0]}",
            hint="train again as the message says, or replace it anyway with --force",
            exit_code=GATE,
        )


def _may_replace(context: Context, path: Path) -> bool:
    """Tell whether this is the very Modelfile to be written: `toolkit modelfile` prints it, and a kill leaves it."""
    from toolkit.register.model_spec import describe_model

    if path != context.folder.modelfile:
        return False
    text = describe_model(context.config, context.folder, _eos(context.config, context.folder)).text
    return path.read_bytes() == text.encode()


def _lost(config: "Config", record: "StageRecord") -> str:
    """Say that the server no longer holds the model; if no server answers, the record is believed."""
    from toolkit.core.errors import ToolkitError
    from toolkit.register.status import lost

    try:
        return lost(config, record.figures)
    except ToolkitError:
        return ""


def _checks(there: Examination) -> Checks:
    from toolkit.register import checks

    return [
        ("ollama", lambda: checks.ollama(there.config, needed=there.alone)),
        ("context", lambda: checks.context(there.config)),
    ]


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.core import console
    from toolkit.ollama.transaction import LATEST

    # An older manifest holds a comparison of the answers, not the answers.
    answers = {tag: one["greedy"] if isinstance(one["greedy"], list) else [] for tag, one in figures["tags"].items()}
    rows = [
        (
            f"{figures['name']}:{tag}",
            values["digest"][:12],
            values["prompts_verified"],
            values["prompts_counted"],
            f"{sum(one['llama.cpp'] == one['ollama'] for one in answers[tag])} of {len(answers[tag])}",
            values["done_reason"],
        )
        for tag, values in figures["tags"].items()
    ]
    heads = ("model", "id", "prompts rendered", "prompts counted", "greedy answers equal", "smoke question")
    where = f"Ollama {figures['server_version']} at {figures['server']}"
    parted = [
        _parted(f"{figures['name']}:{tag}", one)
        for tag, asked in answers.items()
        for one in asked
        if tag != LATEST and one["llama.cpp"] != one["ollama"]
    ]
    return "\n".join([f"registered in {where}", console.table(heads, rows), *parted])


def _parted(model: str, one: dict[str, str]) -> str:
    """Show where the greedy answers of llama.cpp and Ollama differ, side by side."""
    pairs = zip(one["llama.cpp"], one["ollama"], strict=False)
    equal = len(list(takewhile(lambda pair: pair[0] == pair[1], pairs)))
    ours, theirs = (one[who][equal : equal + 40] for who in ("llama.cpp", "ollama"))
    return (
        f"{model} asked {one['question'][:60]!r}: after {equal} equal characters llama.cpp says {ours!r}, "
        f"Ollama {theirs!r}"
    )


STAGE = Stage(
    name="register",
    settings=("ollama", "prompt", "export", "run.name", "train.max_length", "validate.questions"),
    idle=("ollama.timeout", "export.stream_base"),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
    needs={"validate": "the GGUF files are not validated"},
    may_replace=_may_replace,
    lost=_lost,
    gate=_gate,
)
