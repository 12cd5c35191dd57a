"""The chat template of an adapter from elsewhere: the nearest source wins, and is named."""

import contextlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

from toolkit.core import aliases, console
from toolkit.core.errors import ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.foreign import Sources
from toolkit.formats.gguf_reader import open_gguf
from toolkit.model import base as bases
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer

# Keys of `prompt` that make a format; the others only fill one in.
STATES_PRESET = {"preset", "prefix", "user_turn", "suffix", "eos", "stops"}


def template_of(adapter: Path | None, label: str, sources: Sources) -> Callable[[Path], tuple[str, bool]]:
    """Return what finds the chat template, given the base's folder: its text, and whether it is that of our settings.

    A preset or a part of a custom one given by --set is taken, else the adapter's own template, else the preset in the
    settings' file, else the base's own, else the default preset. Names the source, and warns of a different template
    that is not used.
    """

    def choose(folder: Path) -> tuple[str, bool]:
        prompt = sources.config.prompt
        preset = chat_template(prompt_format(prompt), bos=load_tokenizer(folder).bos is not None)
        names = [key.removeprefix("prompt.") for key in sources.set_there if key.startswith("prompt.")]
        set_there = {aliases.FORMER["prompt"].get(name, name) for name in names}
        on_line = bool(set_there & STATES_PRESET)
        in_file = "preset" in prompt.model_fields_set and not on_line
        ways: list[tuple[str, str | None, bool]] = [
            (f"--set prompt.preset = {prompt.preset}", preset if on_line else None, True),
            ("the adapter's own", saved_template(adapter) if adapter else None, False),
            (f"prompt.preset = {prompt.preset} of `{sources.settings}`", preset if in_file else None, True),
            ("the base's own" if adapter else "the model's own", _of_base(label, folder), False),
            (f"prompt.preset = {prompt.preset}, since neither adapter nor base has one", preset, True),
        ]
        (way, text, ours), *others = [(way, text, ours) for way, text, ours in ways if text]
        console.info(f"chat template: {way}")
        if not ours and set_there:
            keys = ", ".join(f"prompt.{key}" for key in sorted(set_there))
            console.warn(f"--set {keys} has no effect on this chat template; it needs --set prompt.preset")
        for other, differs, _ in others[:-1]:
            if differs != text:
                console.warn(f"{other} is a different chat template, which is not used")
        return str(text), ours

    return choose


def saved_template(folder: Path) -> str | None:
    """Return the chat template in a folder, in any form that transformers wrote, None if there is none.

    chat_template.jinja (since 4.43), tokenizer_config.json (a text, or a list of named ones), chat_template.json (of
    processors). Raises ToolkitError for a file that is there and cannot be read.
    """
    path = folder / "chat_template.jinja"
    if path.is_file():
        return _utf8(path)
    for name in ("tokenizer_config.json", "chat_template.json"):
        if not (folder / name).is_file():
            continue
        kept: Any = read_json(folder / name).get("chat_template")
        if isinstance(kept, list):
            named = {each.get("name"): each.get("template") for each in kept if isinstance(each, dict)}
            kept = named.get("default") or next(iter(named.values()), None)
        if isinstance(kept, str) and kept:
            return kept
    return None


def is_of_base(template: str, folder: Path) -> bool:
    """Tell whether a chat template is the one that a base's folder has."""
    with contextlib.suppress(ToolkitError):
        return template == saved_template(folder)
    return False


def _utf8(path: Path) -> str:
    content, name = path.read_bytes(), shlex.quote(str(path))
    try:
        return re.sub("\r\n?", "\n", content.decode("utf-8"))
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ToolkitError(
            f"`{path}` is not UTF-8 text: byte 0x{content[exc.start]:02x} in line {line}",
            hint=f"transformers reads UTF-8 only. If it is Latin-1: iconv -f latin1 -t utf-8 {name} > {name}.utf8 && "
            f"mv {name}.utf8 {name}",
        ) from None


def _of_base(label: str, folder: Path) -> str | None:
    found = saved_template(folder)
    if found is None:
        files = bases.source_files(label)
        if len(files) == 1 and files[0].suffix != ".json":
            with contextlib.suppress(ToolkitError):
                kept = open_gguf(files[0]).metadata.get("tokenizer.chat_template")
                found = kept if isinstance(kept, str) and kept else None
    return found
