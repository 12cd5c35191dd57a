"""The model that Ollama should hold: its name, template, system message, parameters and licence."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from dataclasses import replace as changed
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.manifest import read_manifest
from toolkit.core.output_settings import check_model_name
from toolkit.core.run_folder import RunFolder
from toolkit.model.licence import stated_licence
from toolkit.ollama import modelfile, modelfile_template, server
from toolkit.ollama.blobs import MARKER
from toolkit.ollama.modelfile import Modelfile
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.templates import go_template

GEMMA = "the Gemma Terms of Use"
HEALTH = "the Health AI Developer Foundations terms"
# Licences of the recipe's models, by a part of their name; others are named by what their files state.
LICENCES = {
    "llama-3.1": "the Llama 3.1 Community License; Built with Llama",
    "llama-3.2": "the Llama 3.2 Community License; Built with Llama",
    "mistral-7b": "Apache-2.0",
    "mistral-nemo": "Apache-2.0",
    "phi-3": "MIT",
    "medgemma": HEALTH,  # before Gemma-2, which medgemma-27b also contains
    "gemma-2": GEMMA,
    "gemma-3": GEMMA,
    "smollm": "Apache-2.0",
}
# What a model card's or GGUF's identifier of a licence means.
TERMS = {
    "gemma": GEMMA,
    "health-ai-developer-foundations": HEALTH,
    "llama3.1": LICENCES["llama-3.1"],
    "llama3.2": LICENCES["llama-3.2"],
    "llama3.3": "the Llama 3.3 Community License; Built with Llama",
    "apache-2.0": "Apache-2.0",
    "mit": "MIT",
}


def model_name(config: Config) -> str:
    """Return the model's name without a tag; raises ToolkitError (exit 2) for one that Ollama would refuse."""
    try:
        return check_model_name(config.ollama.name or config.run.name)
    except ValueError as exc:
        raise ToolkitError(str(exc), hint="choose another `ollama.name`", exit_code=USAGE) from None


def tags_to_replace(name: str, replace: Collection[str], tags: Collection[str]) -> list[str]:
    """Return the tags that `--replace` names; raises ToolkitError (exit 2) for one that would not be replaced."""
    models = {server.listed_name(name, tag): tag for tag in tags}
    found = []
    for model in replace:
        whole, _, tag = model.lower().rpartition(":")
        mark = re.fullmatch(r"toolkit-commit-[0-9a-f]{16}", tag)
        listed = server.listed_name(whole, tag)
        if listed not in models and not (mark and listed == server.listed_name(name, tag)):
            raise ToolkitError(
                f"--replace {model}: this registration does not write that model",
                hint=f"it writes {', '.join(f'`{each}`' for each in models)}",
                exit_code=USAGE,
            )
        found.append(models.get(listed, tag))
    return found


def sampling_parameters(config: Config, eos_text: str, form: PromptFormat) -> dict[str, Any]:
    """Return every sampling parameter with its API type; none is left to the server's defaults, which change."""
    settings = config.ollama
    return {
        "num_ctx": settings.num_ctx or config.train.max_length + settings.num_predict,
        "num_predict": settings.num_predict,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "top_k": settings.top_k,
        "repeat_penalty": settings.repeat_penalty,
        "seed": settings.seed,
        "stop": list(dict.fromkeys([eos_text, *form.stops])),
    }


def licence(config: Config, folder: RunFolder) -> str:
    """Return the licence text: our marker with the run's id, base and data with their hash, then the terms.

    The terms are the user's, or a line about the base model. What is not in the manifest is left out.
    """
    lines = [f"{MARKER}{folder.name}", f"Base model: {config.model.base}"]
    if folder.manifest.exists():
        manifest = read_manifest(folder)
        lines[0] += f" {manifest.run_id}"
        prepared = manifest.stages.get("prepare")
        if prepared and prepared.inputs:
            source = prepared.inputs[0]
            lines.append(f"Data: {Path(source.path).name}, SHA-256 {source.sha256}")
    base = config.model.base
    known = _terms_of(base, config.model.revision)
    terms = config.ollama.license or f"Fine-tuned from {base}" + (f", which is under {known}" if known else "") + "."
    return "\n".join(lines) + f"\n\n{terms}"


def _terms_of(base: str, revision: str) -> str:
    """Name a base's terms by its name, else by what its files state; empty if neither says anything."""
    by_name = next((terms for part, terms in LICENCES.items() if part in base.lower()), "")
    stated = "" if by_name else stated_licence(base, revision)
    return by_name or TERMS.get(stated.lower(), stated)


@dataclass(frozen=True)
class Description:
    """What the model is meant to be, and its Modelfile; `unwritable` says why that cannot hold it."""

    text: str
    spec: Modelfile
    unwritable: tuple[str, ...]


def describe_model(config: Config, folder: RunFolder, eos: str) -> Description:
    """Render the Modelfile of the default quantization, and say what it means.

    `eos` is the EOS token's text. A value that no Modelfile can hold is replaced by a placeholder while the user's
    template is filled, and restored afterwards: the API accepts it. The text is then a comment that says why.
    Raises ToolkitError (exit 2) if the user's template is wrong or changes what was trained.
    """
    form = prompt_format(config.prompt)
    gguf = folder.gguf(config.export.default)
    meant = Modelfile(
        from_=f"./{gguf.relative_to(folder.path).as_posix()}",
        template=go_template(form, eos),
        system=form.instruction,
        parameters=sampling_parameters(config, eos, form),
        licenses=(licence(config, folder),),
    )
    stand_ins: dict[str, str] = {}
    reasons: list[str] = []

    def quoted(value: str, what: str) -> str:
        try:
            return modelfile.quote(value, what)
        except ToolkitError as exc:
            stand_in = f"toolkit-stands-in-{len(stand_ins)}"
            stand_ins[stand_in] = value
            reasons.append(exc.message)
            return modelfile.quote(stand_in, what)

    pairs = [(name, item) for name, value in meant.parameters.items() for item in _each(value)]
    values = {
        "name": model_name(config),
        "from_": modelfile.bare(meant.from_, "the GGUF file's name"),
        "template": quoted(meant.template, "the prompt template"),
        "system": quoted(meant.system, "`prompt.instruction`"),
        "parameters": [
            (name, quoted(item, f"stop text {item!r}") if isinstance(item, str) else repr(item)) for name, item in pairs
        ],
        "license": quoted(meant.licenses[0], "`ollama.license`"),
    }
    source, where = modelfile_template.template_text(config.ollama.template)
    text = modelfile_template.fill_template(values, source, where)
    found = _put_back(modelfile.meaning(modelfile.read_modelfile(text, f"what {where} makes"), where), stand_ins)
    modelfile_template.check_unchanged(found, meant, where)
    return Description(_comment(reasons, text) if reasons else text, found, tuple(reasons))


def _put_back(found: Modelfile, stand_ins: dict[str, str]) -> Modelfile:
    """Replace the placeholders by their values."""
    parameters = {
        name: [stand_ins.get(item, item) for item in value] if isinstance(value, list) else value
        for name, value in found.parameters.items()
    }
    return changed(
        found,
        template=stand_ins.get(found.template, found.template),
        system=stand_ins.get(found.system, found.system),
        parameters=parameters,
        licenses=tuple(stand_ins.get(text, text) for text in found.licenses),
    )


def _comment(reasons: list[str], text: str) -> str:
    """Say in a Modelfile why it cannot hold the model; without a FROM, so that `ollama create` refuses it."""
    lines = [
        "This model cannot be written as a Modelfile:",
        *reasons,
        "`toolkit register` makes it through the server's API, which takes every text. The rest of it would be:",
        "",
        *text.splitlines(),
    ]
    return "".join(f"# {line}".rstrip() + "\n" for line in lines)


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
