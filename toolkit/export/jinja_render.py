"""Render chat templates as transformers does (utils/chat_template_utils.py)."""

import functools
import re
from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from toolkit.core.errors import ToolkitError

HINT = (
    "the file would not run as it was trained. Put the training's tokenizer and chat template next to the "
    "adapter: tokenizer.save_pretrained(DIR)"
)
Chat = Sequence[tuple[str, str]]
Render = Callable[[Chat], str]
Clock = Callable[[str], str]


def renderer(template: str, texts: dict[str, str], clock: Clock | None = None) -> Render:
    """Return the function that renders messages (role, content) by a chat template, up to where the next answer starts.

    `texts` are its bos_token and eos_token; `clock` answers `strftime_now`, by default with the present. Raises
    ToolkitError for invalid Jinja; the function may raise anything.
    """
    from jinja2 import TemplateError

    try:
        compiled = _compiled(template)
    except TemplateError as exc:
        raise ToolkitError(f"the chat template is not valid Jinja: {exc}", hint=HINT) from None
    given_to_all = {**texts, "strftime_now": clock or datetime.now().strftime}

    def render(messages: Chat) -> str:
        given = [{"role": role, "content": content} for role, content in messages]
        text: str = compiled.render(messages=given, add_generation_prompt=given[-1]["role"] == "user", **given_to_all)
        return text

    return render


@functools.lru_cache(maxsize=8)
def _compiled(template: str) -> Any:
    """Compile a chat template once for all the checks of an export; it takes far longer than they do."""
    return _environment().from_string(_plain(template))


def _environment() -> Any:
    """The Jinja that transformers renders chat templates in."""
    import json

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    environment.globals.update(raise_exception=refuse, tools=None, documents=None)
    return environment


def _plain(template: str) -> str:
    """Write transformers' own `generation` blocks, which only mark the answer, as blocks that Jinja has."""
    return re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", r"\1\2if true\3", template).replace(
        "endif true", "endif"
    )
