"""A foreign chat template as Ollama's Go template: what can be said in it, and what cannot.

Where a Modelfile has none, Ollama takes the most similar of its own templates for a chat template that differs by less
than 100 characters, else none at all (template/template.go, Named): then prompts are not those of training.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime

from toolkit.export.jinja_format import format_of
from toolkit.export.jinja_render import Chat, Clock, Render
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.renderings import conversation
from toolkit.prompt.templates import go_string, go_template

_DATE = "\ufdd4"  # stands around a date's format while the prompt format is looked for
_MARKED = re.compile(f"{_DATE}(.*?){_DATE}", re.DOTALL)
# No part of these two is the same, so a template that asks for a date in any way renders them differently.
_DAYS = (datetime(2024, 2, 3, 4, 5, 6), datetime(2031, 11, 28, 21, 45, 50))
_MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October",
           "November", "December")  # fmt: skip
_TODAY = "(currentDate)"  # Ollama's function: 2006-01-02
TURNS: Chat = (("user", "What is flu?"), ("assistant", "An infection."), ("user", "And a cold?"))


@dataclass(frozen=True)
class InGo:
    """A chat template as a Go template: empty with the reason if it cannot be said; `limits` are what it leaves out."""

    text: str
    reason: str = ""
    limits: tuple[str, ...] = ()


def go_of(render_at: Callable[[Clock], Render]) -> InGo:
    """Say a chat template in Go; `render_at` takes what answers `strftime_now`, and returns its rendering.

    The Go template renders chats to the very text that the chat template does, but for what `limits` names: then each
    tells the user what messages must not have.
    """
    marked = format_of(render_at(lambda form: f"{_DATE}{form}{_DATE}"))
    if marked is None and _dated(render_at):
        return InGo("", "it computes with the date")
    if marked is None:
        return InGo("", "it writes more than a fixed text before and after each message")
    text = go_template(marked, "")
    forms = _MARKED.findall(marked.instruction)
    if forms and all(_go_date(form) is not None for form in forms):
        text = _built(marked.instruction) + text.replace(go_string(marked.instruction), "$default")
    for form in dict.fromkeys(_MARKED.findall(text)):
        written = _go_date(form)
        if written is None:
            return InGo("", f"it writes the date as `{form}`")
        text = text.replace(f"{_DATE}{form}{_DATE}", written)
    for day in _DAYS:
        render = render_at(day.strftime)
        if any(_ours(marked, chat, day) != _theirs(render, chat) for chat in (TURNS[:1], TURNS)):
            return InGo("", "it computes with the date")
    return InGo(text, limits=tuple(_limits(marked, render, _DAYS[-1])))


def _dated(render_at: Callable[[Clock], Render]) -> bool:
    one, other = (_theirs(render_at(day.strftime), TURNS) for day in _DAYS)
    return one != other


def _ours(marked: PromptFormat, chat: Chat, day: datetime) -> str:
    given = [{"role": role, "content": content} for role, content in chat]
    return _MARKED.sub(lambda found: day.strftime(found[1]), conversation(marked, given, ""))


def _theirs(render: Render, chat: Chat) -> str | None:
    try:
        return render(chat)
    except Exception:  # a template may raise in any way
        return None


def _limits(marked: PromptFormat, render: Render, day: datetime) -> list[str]:
    """Name what the chat template changes within messages; Go has neither a way to trim nor to cut them."""

    def changes(*chats: Chat) -> bool:
        found = [(chat, _theirs(render, chat)) for chat in chats]
        return any(theirs is not None and theirs != _ours(marked, chat, day) for chat, theirs in found)

    question, answer, last = (text for _, text in TURNS)
    spaces = changes(
        [("user", f" \n{question}\n ")],
        [("user", question), ("assistant", f"\n {answer} \n"), ("user", last)],
        [("system", "\n Be brief. \n"), ("user", question)],
    )
    thoughts = changes(
        *(
            [("user", question), ("assistant", thought), ("user", last)]
            for thought in (f"<think>\nHm.\n</think>\n\n{answer}", f"Hm.</think>{answer}", f"<think></think>{answer}")
        )
    )
    said = []
    if spaces:
        said.append("it removes spaces and newlines around messages: send messages without them")
    if thoughts:
        said.append("it removes <think>…</think> from earlier answers: send earlier answers without it")
    return said


def _go_date(form: str) -> str | None:
    """Write a date's strftime format in Go, from Ollama's `currentDate`; None if that does not know a part of it."""
    text = ""
    for part in re.findall(r"%-?.|[^%]+|%", form, re.DOTALL):
        if not part.startswith("%"):
            text += part
        elif part in _PARTS:
            text += _PARTS[part]
        else:
            return None
    return text if "{" not in re.sub(r"\{\{.*?\}\}", "", text) else None


def _built(dated: str) -> str:
    """Write actions that put together `$default`, the template's own system message, around the date of the day."""
    parts = _MARKED.split(dated)
    text = '{{ $default := "" }}'
    for number, part in enumerate(parts):
        for piece in re.split(r"(\{\{.*?\}\})", _go_date(part) or "") if number % 2 else [part]:
            if piece.startswith("{{ slice") and number % 2:
                piece = f'{{{{ $default = printf "%s%s" $default ({piece[3:-3]}) }}}}'
            elif piece and not (piece.startswith("{{") and number % 2):
                piece = f'{{{{ $default = printf "%s%s" $default {go_string(piece)} }}}}'
            text += piece
    return text


def _digits(start: int, end: int) -> str:
    return f"{{{{ slice {_TODAY} {start} {end} }}}}"


def _without_zero(start: int) -> str:
    first = f"slice {_TODAY} {start} {start + 1}"
    return f'{{{{ if ne ({first}) "0" }}}}{{{{ {first} }}}}{{{{ end }}}}{_digits(start + 1, start + 2)}'


def _named(names: Sequence[str]) -> str:
    """Write the month's name: one condition for each."""
    text = ""
    for number, name in enumerate(names, 1):
        word = "if" if number == 1 else "else if"
        text += f'{{{{ {word} eq (slice {_TODAY} 5 7) "{number:02}" }}}}{name}'
    return text + "{{ end }}"


_PARTS = {
    "%Y": _digits(0, 4), "%y": _digits(2, 4), "%m": _digits(5, 7), "%d": _digits(8, 10), "%F": _digits(0, 10),
    "%-m": _without_zero(5), "%-d": _without_zero(8), "%B": _named(_MONTHS),
    "%b": _named([name[:3] for name in _MONTHS]), "%%": "%",
}  # fmt: skip
