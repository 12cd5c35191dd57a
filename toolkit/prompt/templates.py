"""One prompt format written out as a Jinja template, as a Go template, and as a Python function."""

import re
from collections.abc import Callable

from toolkit.prompt.format import THINK, IfFirst, IfInstruction, Piece, PromptFormat, Slot

# The text of a message's content, in Jinja: null is empty, and text parts are joined as messages in a row are. Older
# builds of llama.cpp join them by a newline, unless they see a template look at `content[0]`.
_MESSAGE_TEXT = (
    "{% macro text(content) %}{% if content and (content[0] is mapping or content is not string) %}"
    "{% set found = namespace(text='', any=false) %}"
    "{% for part in content %}{% set piece = part if part is string else part['text'] %}{% if piece is string %}"
    "{% set found.text = found.text + '\\n\\n' + piece if found.any else piece %}{% set found.any = true %}"
    "{% endif %}{% endfor %}{{ found.text }}"
    "{% elif content %}{{ content }}{% endif %}{% endmacro %}"
)


def chat_template(prompt_format: PromptFormat, *, bos: bool) -> str:
    """Render the format as a Jinja chat template for the GGUF and the tokenizer.

    With `bos`, if the model has one, it begins with that token: what renders a chat template does not add one.
    Everything is written as an expression, because transformers and llama.cpp trim literal text around tags. What ends
    a message is kept in `ns.tail` until another question or answer follows, and in `ns.end` if none does.
    """
    parts = (prompt_format.start, prompt_format.head, *prompt_format.tail)
    start, head, closing, opening = (_sum(each, _jinja, "ns.lead", "", "ns.first") for each in parts)
    once = any(isinstance(piece, IfFirst) for piece in prompt_format.turn)
    instruction, after = _jinja(prompt_format.instruction), _jinja(prompt_format.after)
    eos = _jinja(prompt_format.eos) if prompt_format.eos else "eos_token"
    return (
        f"{'{{ bos_token }}' if bos else ''}{_MESSAGE_TEXT}"
        f"{{% set ns = namespace({'first=true, ' if once else ''}"
        "lead='', rest='', more=false, before='', tail='', end='') %}"
        "{% for message in messages %}{% set content = text(message['content']) %}"
        "{% if message['role'] == 'system' and (loop.first or ns.before == 'leading') %}"
        "{% set ns.lead = content if loop.first else ns.lead + '\\n\\n' + content %}{% set ns.before = 'leading' %}"
        "{% else %}{% set ns.before = '' %}{% if message['role'] == 'system' or message['role'] == 'developer' %}"
        "{% set ns.rest = ns.rest + '\\n\\n' + content if ns.more else content %}{% set ns.more = true %}"
        "{% endif %}{% endif %}{% endfor %}"
        f"{{% if ns.more and (not ns.lead or ns.lead == {instruction}) %}}{{% set ns.lead = ns.rest %}}"
        "{% elif ns.more %}{% set ns.lead = ns.lead + '\\n\\n' + ns.rest %}{% endif %}"
        f"{{% if not ns.lead %}}{{% set ns.lead = {instruction} %}}{{% endif %}}"
        f"{{{{ {start} }}}}"
        "{% set ns.before = '' %}{% for message in messages %}{% set content = text(message['content']) %}"
        "{% if message['role'] == ns.before and (ns.before == 'user' or ns.before == 'assistant') %}"
        "{{ '\\n\\n' + content }}"
        f"{{% elif message['role'] == 'user' %}}{{{{ ns.tail + {head} + content }}}}"
        f"{'{% set ns.first = false %}' if once else ''}{{% set ns.tail = {closing} + {opening} %}}"
        f"{{% set ns.end = {closing} + ({opening} if add_generation_prompt else '') %}}"
        "{% elif message['role'] == 'assistant' %}{{ ns.tail + content }}"
        f"{{% set ns.end = '' if add_generation_prompt else {eos} %}}{{% set ns.tail = {eos} + {after} %}}"
        "{% endif %}{% set ns.before = message['role'] %}{% endfor %}{{ ns.end }}"
    )


def go_template(prompt_format: PromptFormat, eos: str) -> str:
    """Render the format as an Ollama TEMPLATE (Go text/template in messages mode).

    `eos` is the EOS token's text; it follows past answers only. No `{{-` is used: it would eat the newline that
    ends the prompt. Nor is `.System`: it lacks what a developer says. Where answers may hold thoughts, it names their
    marks where nothing is written: Ollama looks for `.Thinking` between them (thinking/template.go, InferTags), then
    returns thoughts apart from the answer, and takes `think` in requests.
    """
    default = go_string(prompt_format.instruction)

    def written(pieces: tuple[Piece, ...]) -> str:
        text = ""
        for piece in pieces:
            if isinstance(piece, IfInstruction):
                text += f"{{{{ if $lead }}}}{written(piece.pieces)}{{{{ end }}}}"
            elif isinstance(piece, IfFirst):
                text += f"{{{{ if $first }}}}{written(piece.pieces)}{{{{ end }}}}{{{{ $first = false }}}}"
            elif isinstance(piece, str):
                text += _go(piece)
            else:
                text += "{{ $lead }}" if piece is Slot.INSTRUCTION else "{{ .Content }}"
        return text

    start, turn, after = written(prompt_format.start), written(prompt_format.turn), _go(eos + prompt_format.after)
    once = any(isinstance(piece, IfFirst) for piece in prompt_format.turn)
    tags = f"{{{{ if false }}}}{THINK[0]}{{{{ .Thinking }}}}{THINK[1]}{{{{ end }}}}" if prompt_format.thoughts else ""
    return (
        f"{'{{ $first := true }}' if once else ''}"
        '{{ $lead := "" }}{{ $rest := "" }}{{ $more := false }}{{ $last := -1 }}{{ range $i, $_ := .Messages }}'
        '{{ if or (eq .Role "user") (eq .Role "assistant") }}{{ $last = $i }}'
        '{{ else if and (eq $i 0) (eq .Role "system") }}{{ $lead = .Content }}'
        '{{ else if or (eq .Role "system") (eq .Role "developer") }}'
        '{{ if $more }}{{ $rest = printf "%s\\n\\n%s" $rest .Content }}{{ else }}{{ $rest = .Content }}{{ end }}'
        "{{ $more = true }}{{ end }}{{ end }}"
        f'{{{{ if and $more (or (eq $lead "") (eq $lead {default})) }}}}{{{{ $lead = $rest }}}}'
        '{{ else if $more }}{{ $lead = printf "%s\\n\\n%s" $lead $rest }}{{ end }}'
        f'{{{{ if eq $lead "" }}}}{{{{ $lead = {default} }}}}{{{{ end }}}}'
        f'{start}{{{{ range $i, $_ := .Messages }}}}{{{{ if eq .Role "user" }}}}{turn}'
        '{{ else if eq .Role "assistant" }}{{ .Content }}'
        f"{tags}"
        f"{{{{ if ne $i $last }}}}{after}{{{{ end }}}}{{{{ end }}}}{{{{ end }}}}"
    )


def python_function(prompt_format: PromptFormat) -> str:
    """Render the format as a Python function that needs nothing else, for scripts that send `raw` prompts."""
    text = _sum((*prompt_format.start, *prompt_format.turn), repr, "instruction", "question", space="\n        ")
    return (
        f"def prompt(question, instruction={prompt_format.instruction!r}):\n"
        f'    """Return the text that the model was trained to answer."""\n'
        f"    return (\n        {text}\n    )\n"
    )


def _sum(
    pieces: tuple[Piece, ...],
    quote: Callable[[str], str],
    instruction: str,
    question: str,
    first: str = "",
    space: str = " ",
) -> str:
    """Write pieces as a sum of texts, which is the same in Jinja and in Python; the names are the variables'.

    `first` is the one that says whether a question is the first; empty if it always is.
    """
    terms = []
    for piece in pieces:
        if isinstance(piece, IfInstruction):
            terms.append(f"(({_sum(piece.pieces, quote, instruction, question)}) if {instruction} else '')")
        elif isinstance(piece, IfFirst):
            inner = _sum(piece.pieces, quote, instruction, question)
            terms.append(f"(({inner}) if {first} else '')" if first else inner)
        elif isinstance(piece, str):
            terms.append(quote(piece))
        else:
            terms.append(instruction if piece is Slot.INSTRUCTION else question)
    return f"{space}+ ".join(terms) if terms else quote("")


# Ollama prefers a GGUF's chat template to TEMPLATE if it has these words (server/images.go).
_TELLING = re.compile("(?<=tool)(?=s|_call)|(?<=<)(?=/?think>)")


def _jinja(text: str) -> str:
    """Quote text as a Jinja string.

    Only escapes that llama.cpp's own Jinja reads are used; Jinja2 itself would turn a carriage return into a newline.
    Words that Ollama takes for abilities are split in two.
    """
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return '"' + _TELLING.sub('" + "', escaped) + '"'


def _go(text: str) -> str:
    """Write text as a literal of a Go template: a `{` before another, or before what comes next, opens an action."""
    return re.sub(r"\{(?=\{|\Z)", '{{ "{" }}', text)


def go_string(text: str) -> str:
    """Quote text as a string of a Go template, as it stands in an action."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n").replace("\r", "\\r")
    return f'"{escaped}"'
