"""The stage `register`."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core.stage import Checks, Context, Examination, Stage, StageFiles

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.manifest import Outcome, StageRecord
    from toolkit.core.run_folder import RunFolder


def _files(config: "Config", folder: "RunFolder") -> StageFiles:
    files = [folder.gguf(quantization) for quantization in config.export.quantizations]
    return StageFiles([*files, folder.side("test")], [folder.modelfile])


def _run(context: Context) -> "Outcome":
    from toolkit.core.files import read_records
    from toolkit.core.manifest import record_file
    from toolkit.register import register

    config, folder, stages = context.config, context.folder, context.manifest.stages
    files = {quantization: folder.gguf(quantization) for quantization in config.export.quantizations}
    known = stages["export"].outputs if "export" in stages else []
    digests = {name: record_file(path, folder, known).sha256 for name, path in files.items()}
    held_out = read_records(folder.side("test"))
    return register(config, folder, _eos(config, folder), files, digests, held_out, force=context.force)


def _eos(config: "Config", folder: "RunFolder") -> str:
    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.tokenizer import load_tokenizer

    return load_tokenizer(folder.adapter, prompt_format(config.prompt)).eos_text


def _may_replace(context: Context, path: Path) -> bool:
    """Tell whether this is the very Modelfile to be written: `toolkit modelfile` prints it, and a kill leaves it."""
    from toolkit.register.model_spec import describe

    text = describe(context.config, context.folder, _eos(context.config, context.folder)).text
    return path == context.folder.modelfile and path.read_bytes() == text.encode()


def _lost(config: "Config", record: "StageRecord") -> str:
    """Say that the server does not hold the model any more; where no server answers, the record is believed."""
    from toolkit.core.errors import ToolkitError
    from toolkit.register.status import lost

    try:
        return lost(config, record.figures)
    except ToolkitError:
        return ""


def _checks(there: Examination) -> Checks:
    from toolkit.register import checks

    return [("ollama", lambda: checks.ollama(there.config, needed=there.alone))]


def _summary(figures: dict[str, Any], folder: "RunFolder") -> str:
    from toolkit.core import console
    from toolkit.ollama.transaction import LATEST

    rows = [
        (
            f"{figures['name']}:{tag}",
            values["digest"][:12],
            values["prompts_verified"],
            values["prompts_counted"],
            f"{values['greedy']['agreed']} of {values['greedy']['answers']}",
            values["done_reason"],
        )
        for tag, values in figures["tags"].items()
    ]
    heads = ("model", "id", "prompts rendered", "prompts counted", "greedy answers equal", "smoke question")
    where = f"Ollama {figures['server_version']} at {figures['server']}"
    apart = [
        _apart(f"{figures['name']}:{tag}", values["greedy"])
        for tag, values in figures["tags"].items()
        if tag != LATEST and values["greedy"]["parted"]
    ]
    return "\n".join([f"registered in {where}", console.table(heads, rows), *apart])


def _apart(model: str, greedy: dict[str, Any]) -> str:
    """Say over how little the greedy answers of Ollama and llama.cpp part, where they do."""
    leads = [max(one["lead"], one["server_lead"] or 0.0) for one in greedy["parted"]]
    first, last = (pick(one["after"] for one in greedy["parted"]) for pick in (min, max))
    return (
        f"{model}: {len(leads)} of {greedy['answers']} answers part from llama.cpp's, after {first} to {last} equal "
        f"tokens, over two that are at most {max(leads):.3f} logits apart (rounding makes up to "
        f"{greedy['rounding']:.2f} in this file)"
    )


STAGE = Stage(
    name="register",
    settings=("ollama", "prompt", "export", "run.name", "train.max_length", "validate.questions"),
    idle=("ollama.timeout",),
    files=_files,
    run=_run,
    summary=_summary,
    checks=_checks,
    needs={"validate": "the GGUF files are not validated"},
    may_replace=_may_replace,
    lost=_lost,
)
