"""One prompt format written out: as text with its parts, as a Jinja and a Go template, as a Python function."""

import re
from collections.abc import Callable, Sequence

from toolkit.prompt.format import MESSAGE_SEPARATOR, IfInstruction, Part, Piece, Prompt, PromptFormat, Slot


def render(form: PromptFormat, question: str, instruction: str | None = None) -> Prompt:
    """Render a first question up to where the answer starts; this is what training masks and serving sends."""
    return Prompt((*_fill(form.start, form, question, instruction), *_fill(form.turn, form, question, instruction)))


def prompt_text(form: PromptFormat, question: str, instruction: str | None = None) -> str:
    """Return the text of `render`."""
    return render(form, question, instruction).text


def conversation(form: PromptFormat, messages: Sequence[dict[str, str]], eos: str) -> str:
    """Render messages (`role`, `content`) as the templates below do; `eos` is the EOS token's text."""
    instruction = MESSAGE_SEPARATOR.join(message["content"] for message in messages if message["role"] == "system")
    text = "".join(part.text for part in _fill(form.start, form, "", instruction))
    turns: list[tuple[str, str]] = []
    for message in messages:
        role, content = message["role"], message["content"]
        if turns and turns[-1][0] == role:
            content = turns.pop()[1] + MESSAGE_SEPARATOR + content
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
        if isinstance(piece, IfInstruction):
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
            if isinstance(piece, IfInstruction):
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
        if isinstance(piece, IfInstruction):
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
