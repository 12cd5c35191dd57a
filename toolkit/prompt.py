"""The prompt format, once: every rendering of it comes from here.

A format is a list of literal pieces and slots. From it come the training text, the Jinja chat template inside the
GGUF, Ollama's Go TEMPLATE, the stop list, and a Python function for scripts. None of them holds a BOS: every runtime
adds that itself.

Mapping everywhere: system messages fill the instruction (joined by a blank line, where there are several), the user
message fills the input. Messages of one role in a row are one message, joined by a blank line, as Ollama joins them.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum

from toolkit.config import PromptSettings

JOINT = "\n\n"


class Slot(Enum):
    """A place that a record fills."""

    INSTRUCTION = "instruction"
    INPUT = "input"


@dataclass(frozen=True)
class Given:
    """Pieces that stand only where there is an instruction."""

    pieces: tuple[str | Slot, ...]


Piece = str | Slot | Given


@dataclass(frozen=True)
class PromptFormat:
    """One prompt format: `start` once, then `turn` for each question, up to where its answer starts.

    An answer ends in `eos`, a control token of the vocabulary, or in the base's own EOS where that is empty; `after`
    stands behind a past answer and its EOS. `instruction` fills in where nothing else does; it may be empty where its
    pieces are `Given`. `controls` are what must be control tokens of the vocabulary. `stops` end an answer that runs on
    into another prompt.
    """

    start: tuple[Piece, ...]
    turn: tuple[Piece, ...]
    after: str
    eos: str
    instruction: str
    controls: tuple[str, ...]
    stops: tuple[str, ...]


@dataclass(frozen=True)
class Part:
    """A part of a prompt: the format's own text (`ours`), in which a control token is one, or data, which is text."""

    text: str
    ours: bool


@dataclass(frozen=True)
class Prompt:
    """A prompt that still knows which of its text is the format's and which is data."""

    parts: tuple[Part, ...]

    @property
    def text(self) -> str:
        """The prompt as a server gets it."""
        return "".join(part.text for part in self.parts)

    def __add__(self, answer: str) -> "Prompt":
        """Return the prompt with data behind it."""
        return Prompt((*self.parts, Part(answer, ours=False)))


def prompt_format(settings: PromptSettings) -> PromptFormat:
    """Build the format that the settings name."""
    build = {"alpaca": _alpaca, "alpaca-no-input": _alpaca_no_input, "chatml": _chatml, "llama3": _llama3}
    return build.get(settings.preset, _custom)(settings)


def _alpaca(settings: PromptSettings) -> PromptFormat:
    """Stanford Alpaca's wording with input; the newline after `### Response:` belongs to the prompt."""
    preamble = (
        "Below is an instruction that describes a task, paired with an input that provides further context. "
        f"Write a response{_language(settings)} that appropriately completes the request."
    )
    turn = (
        f"{preamble}\n\n### Instruction:\n",
        Slot.INSTRUCTION,
        "\n\n### Input:\n",
        Slot.INPUT,
        "\n\n### Response:\n",
    )
    stops = ("### Instruction:", "### Input:", "### Response:")
    return PromptFormat((), turn, JOINT, "", settings.instruction, (), stops)


def _alpaca_no_input(settings: PromptSettings) -> PromptFormat:
    """Stanford Alpaca's wording without input: the question is the instruction, a given one stands in front of it."""
    preamble = (
        "Below is an instruction that describes a task. "
        f"Write a response{_language(settings)} that appropriately completes the request."
    )
    turn = (
        f"{preamble}\n\n### Instruction:\n",
        Given((Slot.INSTRUCTION, "\n\n")),
        Slot.INPUT,
        "\n\n### Response:\n",
    )
    return PromptFormat((), turn, JOINT, "", settings.instruction, (), ("### Instruction:", "### Response:"))


def _language(settings: PromptSettings) -> str:
    return f" in {settings.language}" if settings.language else ""


def _chatml(settings: PromptSettings) -> PromptFormat:
    start = (Given(("<|im_start|>system\n", Slot.INSTRUCTION, "<|im_end|>\n")),)
    turn = ("<|im_start|>user\n", Slot.INPUT, "<|im_end|>\n<|im_start|>assistant\n")
    controls = ("<|im_start|>", "<|im_end|>")
    return PromptFormat(start, turn, "\n", "<|im_end|>", settings.instruction, controls, ("<|im_start|>",))


def _llama3(settings: PromptSettings) -> PromptFormat:
    """Llama 3's format; Llama 3.1's own template puts dates in front of the system message, which this leaves out."""
    head, end = "<|start_header_id|>{}<|end_header_id|>\n\n", "<|eot_id|>"
    start = (Given((head.format("system"), Slot.INSTRUCTION, end)),)
    turn = (head.format("user"), Slot.INPUT, end + head.format("assistant"))
    controls = ("<|start_header_id|>", "<|end_header_id|>", end)
    return PromptFormat(start, turn, "", end, settings.instruction, controls, ("<|start_header_id|>",))


def _custom(settings: PromptSettings) -> PromptFormat:
    """The user's own; `config` has checked that each slot stands where it must."""
    slots = {"{instruction}": Slot.INSTRUCTION, "{input}": Slot.INPUT}

    def pieces(text: str) -> tuple[Piece, ...]:
        return tuple(slots.get(piece, piece) for piece in re.split(r"(\{instruction\}|\{input\})", text) if piece)

    controls = (settings.eos,) if settings.eos else ()
    return PromptFormat(
        pieces(settings.start),
        pieces(settings.turn),
        settings.after,
        settings.eos,
        settings.instruction,
        controls,
        tuple(settings.stops),
    )


def render(form: PromptFormat, question: str, instruction: str | None = None) -> Prompt:
    """Render a first question up to where the answer starts; this is what training masks and serving sends."""
    return Prompt((*_fill(form.start, form, question, instruction), *_fill(form.turn, form, question, instruction)))


def prompt_text(form: PromptFormat, question: str, instruction: str | None = None) -> str:
    """Return the text of `render`."""
    return render(form, question, instruction).text


def conversation(form: PromptFormat, messages: Sequence[dict[str, str]], eos: str) -> str:
    """Render messages (`role`, `content`) as the templates below do; `eos` is the EOS token's text."""
    instruction = JOINT.join(message["content"] for message in messages if message["role"] == "system")
    text = "".join(part.text for part in _fill(form.start, form, "", instruction))
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if turns and turns[-1][0] == role:
            content = turns.pop()[1] + JOINT + content
        turns.append((role, content))
    for role, content in turns:
        if role == "user":
            text += "".join(part.text for part in _fill(form.turn, form, content, instruction))
        elif role == "assistant":
            text += content + eos + form.after
    return text


def _fill(pieces: tuple[Piece, ...], form: PromptFormat, question: str, instruction: str | None) -> list[Part]:
    values = {Slot.INSTRUCTION: instruction or form.instruction, Slot.INPUT: question}
    parts: list[Part] = []
    for piece in pieces:
        if isinstance(piece, Given):
            parts += _fill(piece.pieces, form, question, instruction) if values[Slot.INSTRUCTION] else []
        else:
            parts.append(Part(piece, ours=True) if isinstance(piece, str) else Part(values[piece], ours=False))
    return parts


def chat_template(form: PromptFormat) -> str:
    """Render the format as a Jinja chat template for the GGUF and the tokenizer.

    Everything is written as an expression, because transformers and llama.cpp trim literal text around tags. What ends
    a message is kept in `ns.tail` until one of another role follows.
    """
    cut = form.turn.index(Slot.INPUT)
    start, head, tail = (
        _sum(pieces, _jinja, "ns.instruction", "") for pieces in (form.start, form.turn[:cut], form.turn[cut + 1 :])
    )
    end = f"{_jinja(form.eos)} + {_jinja(form.after)}" if form.eos else f"eos_token + {_jinja(form.after)}"
    return (
        "{% set ns = namespace(instruction='', seen=false, before='', tail='') %}"
        "{% for message in messages %}{% if message['role'] == 'system' %}"
        "{% set ns.instruction = ns.instruction + '\\n\\n' + message['content'] if ns.seen else message['content'] %}"
        "{% set ns.seen = true %}{% endif %}{% endfor %}"
        f"{{% if not ns.instruction %}}{{% set ns.instruction = {_jinja(form.instruction)} %}}{{% endif %}}"
        f"{{{{ {start} }}}}"
        "{% for message in messages %}"
        "{% if message['role'] == ns.before and (ns.before == 'user' or ns.before == 'assistant') %}"
        "{{ '\\n\\n' + message['content'] }}"
        "{% else %}{{ ns.tail }}{% set ns.tail = '' %}"
        f"{{% if message['role'] == 'user' %}}{{{{ {head} + message['content'] }}}}{{% set ns.tail = {tail} %}}"
        f"{{% elif message['role'] == 'assistant' %}}{{{{ message['content'] }}}}{{% set ns.tail = {end} %}}"
        "{% endif %}{% endif %}"
        "{% set ns.before = message['role'] %}{% endfor %}{{ ns.tail }}"
    )


def go_template(form: PromptFormat, eos: str) -> str:
    """Render the format as an Ollama TEMPLATE (Go text/template in messages mode).

    `eos` is the EOS token's text; it stands after past answers only. No `{{-` is used: it would eat the newline that
    ends the prompt.
    """
    given = f"{{{{ else }}}}{_go(form.instruction)}" if form.instruction else ""
    instruction = f"{{{{ if $.System }}}}{{{{ $.System }}}}{given}{{{{ end }}}}"

    def written(pieces: tuple[Piece, ...]) -> str:
        text = ""
        for piece in pieces:
            if isinstance(piece, Given):
                inner = written(piece.pieces)
                text += inner if form.instruction else f"{{{{ if $.System }}}}{inner}{{{{ end }}}}"
            elif isinstance(piece, str):
                text += _go(piece)
            else:
                text += instruction if piece is Slot.INSTRUCTION else "{{ .Content }}"
        return text

    return (
        f'{written(form.start)}{{{{ range .Messages }}}}{{{{ if eq .Role "user" }}}}{written(form.turn)}'
        f'{{{{ else if eq .Role "assistant" }}}}{{{{ .Content }}}}{_go(eos + form.after)}{{{{ end }}}}{{{{ end }}}}'
    )


def python_function(form: PromptFormat) -> str:
    """Render the format as a Python function that needs nothing else, for scripts that send `raw` prompts."""
    text = _sum((*form.start, *form.turn), repr, "instruction", "question", "\n        ")
    return (
        f"def prompt(question, instruction={form.instruction!r}):\n"
        f'    """Return the text that the model was trained to answer."""\n'
        f"    return (\n        {text}\n    )\n"
    )


def _sum(
    pieces: tuple[Piece, ...], quote: Callable[[str], str], instruction: str, question: str, space: str = " "
) -> str:
    """Write pieces as a sum of texts, which is the same in Jinja and in Python; the names are the variables'."""
    terms = []
    for piece in pieces:
        if isinstance(piece, Given):
            terms.append(f"(({_sum(piece.pieces, quote, instruction, question)}) if {instruction} else '')")
        elif isinstance(piece, str):
            terms.append(quote(piece))
        else:
            terms.append(instruction if piece is Slot.INSTRUCTION else question)
    return f"{space}+ ".join(terms) if terms else quote("")


# Ollama prefers a GGUF's chat template that has these words over TEMPLATE (server/images.go).
_TELLING = re.compile("(?<=tool)(?=s|_call)|(?<=<)(?=/?think>)")


def _jinja(text: str) -> str:
    """Quote text as a Jinja string.

    Only escapes that llama.cpp's own Jinja reads are used; Jinja2 itself would turn a carriage return into a newline.
    Words that Ollama takes for abilities are written in two halves.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + _TELLING.sub('" + "', escaped) + '"'


def _go(text: str) -> str:
    """Write text as a literal of a Go template: a `{` before another, or before what comes next, opens an action."""
    return re.sub(r"\{(?=\{|\Z)", '{{ "{" }}', text)
