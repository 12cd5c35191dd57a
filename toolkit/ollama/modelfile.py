"""Ollama's Modelfile: a writer and a reader of its grammar, and what a Modelfile means.

The grammar is that of parser/parser.go in ollama/ollama. It has no escapes: a value is everything between two `\"\"\"`.
"""

import difflib
import re
from dataclasses import dataclass
from typing import Any

from toolkit.core.errors import USAGE, ToolkitError

COMMANDS = (
    "from", "license", "template", "system", "adapter", "draft", "renderer", "parser", "parameter", "message",
    "requires",
)  # fmt: skip
ROLES = ("system", "user", "assistant")

# Options of api/types.go that a server accepts at create and uses later; typical_p is left out: 0.34 refuses it.
INTEGERS = (
    "num_ctx", "num_predict", "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "seed", "top_k",
    "repeat_last_n", "draft_num_predict",
)  # fmt: skip
FLOATS = ("temperature", "top_p", "min_p", "repeat_penalty", "presence_penalty", "frequency_penalty")
BOOLEANS = ("use_mmap",)
LISTS = ("stop",)
PARAMETERS = (*INTEGERS, *FLOATS, *BOOLEANS, *LISTS)

BARE = re.compile(r"[A-Za-z0-9_./+-]+")
CLOSES_EARLY = re.compile(r'"""[ \t]*[\r\n]')
LARGEST_INTEGER = 2**31 - 1  # the options are Go ints, llama.cpp's are 32 bits wide
LARGEST_FLOAT = 3.4e38


@dataclass(frozen=True)
class Command:
    """One instruction as the parser sees it; a PARAMETER's name is `parameter:NAME`, a MESSAGE's `message:ROLE`."""

    name: str
    value: str


@dataclass(frozen=True)
class Modelfile:
    """What a Modelfile says about a model; parameters have the types that the API wants."""

    from_: str
    template: str
    system: str
    parameters: dict[str, Any]
    licenses: tuple[str, ...]


def quote(value: str, what: str) -> str:
    r"""Write a value so that Ollama's parser reads exactly that value: `\"\"\"`, the value, `\"\"\"`.

    Raises ToolkitError if the grammar has no way to write it: a line that ends in `\"\"\"`, or a character that
    the parser drops. That is what Go's strconv.IsPrint refuses, and so does str.isprintable; tab, CR and LF stay.
    """
    for position, char in enumerate(value):
        if not char.isprintable() and char not in "\t\r\n":
            raise ToolkitError(
                f"{what} holds U+{ord(char):04X} at character {position + 1}, which Ollama would drop from a Modelfile",
                hint="replace it with an ordinary character, such as a plain space for a no-break one",
                exit_code=USAGE,
            )
    if CLOSES_EARLY.search(value):
        raise ToolkitError(
            f'{what} has a line that ends in `"""`, which would end the value in a Modelfile',
            hint='write something after the `"""`, or use other quotes',
            exit_code=USAGE,
        )
    return f'"""{value}"""'


def bare(value: str, what: str) -> str:
    """Write a number or path unchanged if it is one plain word, else quoted."""
    return value if BARE.fullmatch(value) else quote(value, what)


def read_modelfile(text: str, where: str = "the Modelfile") -> list[Command]:
    """Parse a Modelfile as Ollama does, rune by rune.

    Raises ToolkitError with the line for an unknown instruction, an unfinished value, or no FROM.
    """
    commands: list[Command] = []
    state, name, buffer, line = "start", "", "", 1

    def broken(reason: str) -> ToolkitError:
        return ToolkitError(f"{where}, line {line}: {reason}", hint="Ollama would not read it either", exit_code=USAGE)

    for char in text.removeprefix("\ufeff"):
        if char in "\r\n":
            line += 1
        ending = char in " \t\r\n"
        if state == "start":
            if char == "#":
                state = "comment"
            elif not ending:
                state, buffer = "name", char if char.isprintable() else ""
        elif state == "comment":
            if char in "\r\n":
                state = "start"
        elif state == "value":
            value = _unquote(buffer.strip(" \t\r\n"))
            if char in "\r\n" and value is not None:
                commands.append(Command(name, value))
                state, buffer = "start", ""
            elif ending or char.isprintable():
                buffer += char
        elif char in " \t":  # the end of an instruction's, parameter's or role's name
            if state == "name":
                name = buffer.lower()
                if name not in COMMANDS:
                    raise broken(f"`{buffer}` is not an instruction (known: {', '.join(COMMANDS).upper()})")
                state = name if name in ("parameter", "message") else "value"
            else:
                if state == "message" and buffer not in ROLES:
                    raise broken(f"`{buffer}` is not a role (known: {', '.join(ROLES)})")
                name, state = f"{state}:{buffer}", "value"
            buffer = ""
        else:
            allowed = {"name": r"[A-Za-z]", "parameter": r"[A-Za-z0-9_]", "message": r"[A-Za-z]"}[state]
            if not re.fullmatch(allowed, char):
                raise broken(f"{char!r} is not allowed in the name `{buffer}…`")
            buffer += char
    if state == "value":
        value = _unquote(buffer.strip(" \t\r\n"))
        if value is None:
            raise broken(f"the value of {name.upper()} has no closing quotes")
        commands.append(Command(name, value))
    elif state not in ("start", "comment"):
        raise broken(f"`{buffer}` has no value")
    if not any(command.name == "from" for command in commands):
        raise broken("there is no FROM")
    return commands


def _unquote(text: str) -> str | None:
    """Remove the quotes of a trimmed value; None if they are not closed yet."""
    for mark in ('"""', '"'):
        if text.startswith(mark):
            return text[len(mark) : -len(mark)] if len(text) >= 2 * len(mark) and text.endswith(mark) else None
    return text


def meaning(commands: list[Command], where: str = "the Modelfile") -> Modelfile:
    """Return what a Modelfile means, with typed parameters.

    Raises ToolkitError that lists every parameter Ollama does not know or could not use (its API would take them and
    fail at the first question), and for instructions that would make a different model from the one that was tested.
    """
    values = {"from": "", "template": "", "system": ""}
    licenses: list[str] = []
    parameters: dict[str, Any] = {}
    problems: list[str] = []
    for command in commands:
        kind, _, detail = command.name.partition(":")
        if kind in values:
            values[kind] = command.value  # the last one counts
        elif kind == "license":
            licenses.append(command.value)
        elif kind == "parameter":
            try:
                typed = _typed(detail, command.value)
            except ValueError as exc:
                problems.append(str(exc))
            else:
                parameters[detail] = [*parameters.get(detail, []), typed] if detail in LISTS else typed
        else:
            problems.append(f"{kind.upper()}: it would change what the model answers in a way that was not tested")
    if problems:
        raise ToolkitError(
            f"{where} contains what cannot be registered:\n" + "\n".join(f"  {problem}" for problem in problems),
            hint=f"parameters that Ollama knows: {', '.join(PARAMETERS)}",
            exit_code=USAGE,
        )
    return Modelfile(values["from"], values["template"], values["system"], parameters, tuple(licenses))


def _typed(name: str, text: str) -> Any:
    """Read a parameter's value as the server would; ValueError says what is wrong with it."""
    if name in LISTS:
        return text
    if name in INTEGERS:
        if re.fullmatch(r"[+-]?[0-9]{1,15}", text) and abs(int(text)) <= LARGEST_INTEGER:
            return int(text)
        raise ValueError(f"PARAMETER {name}: expected a 32-bit integer, got `{text}`")
    if name in FLOATS:
        plain = re.fullmatch(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?", text)
        if plain and abs(float(text)) <= LARGEST_FLOAT:
            return float(text)
        raise ValueError(f"PARAMETER {name}: expected a number, got `{text}`")
    if name in BOOLEANS:
        if text in ("true", "false"):
            return text == "true"
        raise ValueError(f"PARAMETER {name}: expected true or false, got `{text}`")
    close = difflib.get_close_matches(name, PARAMETERS, n=1)
    raise ValueError(
        f"PARAMETER {name}: Ollama has no parameter of that name" + (f"; did you mean `{close[0]}`?" if close else "")
    )
