"""The Modelfile for GGUF files of a model that was trained elsewhere, for `ollama create`.

If the model has its own chat template, TEMPLATE says the same in Go where possible; else Ollama takes the GGUF's.
"""

import hashlib
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.files import write_text
from toolkit.core.output_settings import check_model_name
from toolkit.export.jinja_in_go import InGo, go_of
from toolkit.export.jinja_render import Clock, Render, renderer
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.ollama import modelfile
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.templates import go_template

FIRST = "# Written by toolkit export for "
_SUM = "# An edited Modelfile is kept. Checksum of this one: "


def write_beside(
    targets: dict[str, Path],
    config: Config,
    name: str,
    template: str,
    prompt_format: PromptFormat | None,
    *,
    force: bool,
) -> dict[str, Any]:
    """Write `Modelfile` next to the GGUF files and return its path with the next command.

    It names the default quantization, or the first one. `template` is the chat template in the files,
    `prompt_format` its prompt format, None for a template that came with the model. A Modelfile of another model
    stays, and so does one that a user edited: the new one is then `NAME.Modelfile`.
    """
    quantization = config.export.default if config.export.default in targets else next(iter(targets))
    gguf = targets[quantization]
    with open_vocabulary(gguf) as file:
        bos, eos = file.text(file.bos) if file.adds_bos else "", file.text(file.eos)
        texts = {"bos_token": file.text(file.bos), "eos_token": eos}
    called = _model_name(name)

    def render_at(clock: Clock) -> Render:
        render = renderer(template, texts, clock)
        return lambda messages: render(messages).removeprefix(bos)

    own = go_of(render_at) if prompt_format is None else InGo("")
    if own.reason:
        console.warn(
            f"this chat template cannot be written in Ollama's template language: {own.reason}. Ollama will use a "
            f"similar one of its own, or none: its prompts are not those of training. See `ollama show {called} "
            f"--template`, or serve the file with {shlex.join(['llama-server', '--jinja', '-m', str(gguf)])}"
        )
    for limit in own.limits:
        console.warn(f"the chat template does more than Ollama's template language can: {limit}")
    lines = [f'{FIRST}{" ".join(name.split())}. Ask it with: ollama run {called} "your question"']
    lines.append(f"FROM {modelfile.bare(f'./{gguf.name}', 'the name of the GGUF file')}")
    try:
        if own.text:
            lines.append(f"TEMPLATE {modelfile.quote(own.text, 'the prompt template')}")
        if prompt_format is not None:
            go = go_template(prompt_format, prompt_format.eos or eos)
            lines.append(f"TEMPLATE {modelfile.quote(go, 'the prompt template')}")
            if prompt_format.instruction:
                lines.append(f"SYSTEM {modelfile.quote(prompt_format.instruction, '`prompt.instruction`')}")
        for stop in dict.fromkeys([eos, *(prompt_format.stops if prompt_format else ())]):
            if stop:
                lines.append(f"PARAMETER stop {modelfile.quote(stop, f'the stop text {stop!r}')}")
    except ToolkitError as exc:  # a text that no Modelfile can hold; the GGUF files are written all the same
        console.warn(f"no Modelfile is written: {exc.message}")
        return {}
    lines.append("PARAMETER repeat_penalty 1.0")
    stem = gguf.name.removesuffix(f"-{quantization}.gguf")
    path = _free_place(gguf.parent, stem, lines[0], force)
    write_text(path, "\n".join([lines[0], f"{_SUM}{_checksum(lines)}", *lines[1:]]) + "\n")
    return {"modelfile": str(path), "next": shlex.join(["ollama", "create", called, "-f", str(path)])}


def _free_place(folder: Path, stem: str, first: str, force: bool) -> Path:
    """Return where the Modelfile goes: nothing is there, or what this tool wrote for this model and nobody edited.

    `force` also replaces a Modelfile that came from elsewhere, but no edited one.
    """
    edited, number = [], 1
    path = folder / "Modelfile"
    while path.exists():
        try:
            line, *rest = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError, ValueError):
            line, rest = "", []
        sums = [each.removeprefix(_SUM) for each in rest if each.startswith(_SUM)]
        untouched = sums == [_checksum([line, *(each for each in rest if not each.startswith(_SUM))])]
        if line.startswith(FIRST) and not untouched:
            edited.append(f"`{path}`")
        elif line == first or (force and path.name == "Modelfile"):
            break
        path = folder / (f"{stem}.Modelfile" if number == 1 else f"{stem}-{number}.Modelfile")
        number += 1
    if edited:
        console.warn(f"{', '.join(edited)} was edited, and stays as it is; the new one is `{path}`")
    return path


def _checksum(lines: Sequence[str]) -> str:
    return hashlib.sha256("\n".join("\n".join(lines).splitlines()).encode()).hexdigest()[:16]


def _model_name(name: str) -> str:
    """Return the name for Ollama; what it would refuse in a folder's name becomes `-`."""
    try:
        return check_model_name(name)
    except ValueError:
        return re.sub(r"[^A-Za-z0-9_.-]", "-", name).lstrip(".-")[:80] or "model"
