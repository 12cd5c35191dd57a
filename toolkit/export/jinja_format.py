"""A chat template's prompt format, found by rendering: what comes before, between and after the messages.

Ollama needs it as a Go template (`jinja_in_go`).
"""

from toolkit.export.jinja_render import Render
from toolkit.prompt.format import IfInstruction, Piece, PromptFormat, Slot
from toolkit.prompt.renderings import conversation

_SYSTEM, _FIRST, _ANSWER, _SECOND = "\ufdd0sys\ufdd0", "\ufdd1one\ufdd1", "\ufdd2ans\ufdd2", "\ufdd3two\ufdd3"


def format_of(render: Render) -> PromptFormat | None:
    """Return the prompt format of a chat template, None if it has none.

    `render` gives the text of messages (role, content), up to where the next answer starts. The format renders chats
    of one, two and three questions, with and without a system message, to the very text that the template does.
    """
    try:
        one = _cut(render([("user", _FIRST)]), _FIRST)
        talk = [("user", _FIRST), ("assistant", _ANSWER), ("user", _SECOND)]
        both = _cut(render(talk), _FIRST, _ANSWER, _SECOND)
    except Exception:  # a template may raise in any way
        return None
    try:
        told = _cut(render([("system", _SYSTEM), ("user", _FIRST)]), _SYSTEM, _FIRST)
    except Exception:  # it has no system message
        told = []
    if not one or not both or (both[0], both[1], both[3]) != (one[0], one[1], one[1]):
        return None
    found = _format(one, both[2], told)
    return found if found is not None and _same(found, render, bool(told)) else None


def _cut(text: str, *marks: str) -> list[str]:
    """Cut text at marks that occur once each and in this order; [] if they do not."""
    parts = []
    for mark in marks:
        before, found, text = text.partition(mark)
        if not found or mark in text:
            return []
        parts.append(before)
    return [*parts, text]


def _format(one: list[str], between: str, told: list[str]) -> PromptFormat | None:
    first, tail = one
    if told and told[2] != tail:
        return None
    ends = [first, between, *told[1:2]]
    turn = first
    while not all(text.endswith(turn) for text in ends):
        turn = turn[1:]
    head, after, *rest = (text[: len(text) - len(turn)] for text in ends)
    start: tuple[Piece, ...] = (head,)
    instruction = ""
    if told:
        before, behind = told[0], rest[0]
        default = head[len(before) : len(head) - len(behind)] if behind else head[len(before) :]
        if head and head == before + default + behind and default:  # the template has a system message of its own
            start, instruction = (before, Slot.INSTRUCTION, behind), default
        elif before.startswith(head):
            start = (head, IfInstruction((before[len(head) :], Slot.INSTRUCTION, behind)))
        else:
            return None
    return PromptFormat(_plain(start), _plain((turn, Slot.INPUT, tail)), after, "", instruction, (), ())


def _plain(pieces: tuple[Piece, ...]) -> tuple[Piece, ...]:
    return tuple(piece for piece in pieces if piece != "")


def _same(prompt_format: PromptFormat, render: Render, system: bool) -> bool:
    """Tell whether a format renders chats as the template does."""
    turns = [
        ("user", "What is flu?"),
        ("assistant", "An infection."),
        ("user", "And a cold?\n\nOr two?"),
        ("assistant", "{{ 1 }}"),
        ("user", "Thank you."),
    ]
    for count in (1, 3, 5):
        for said in ([], [("system", "Be brief.\n\nBe kind.")]) if system else ([],):
            messages = [*said, *turns[:count]]
            given = [{"role": role, "content": content} for role, content in messages]
            try:
                if conversation(prompt_format, given, "") != render(messages):
                    return False
            except Exception:  # a template may raise in any way
                return False
    return True
