"""The check of every export: a chat becomes the same ids in llama.cpp as in training.

The vocabulary of the very file is loaded, a few messages are rendered by the chat template in it, and tokenized by the
training's tokenizer and by the file. What llama.cpp takes from elsewhere than the tokenizer (a model's name decides how
it treats spaces, for instance) is written so that the ids are equal, if possible; else the export is refused.
"""

import re
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import GGUFValueType, Keys

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import naming
from toolkit.export.vocab.tokenizer_source import TokenizerSource
from toolkit.formats import gguf_writer
from toolkit.formats.gguf_writer import Metadata
from toolkit.llamacpp.vocabulary import Vocabulary, open_vocabulary
from toolkit.prompt.format import Part, Prompt, PromptFormat
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

HINT = (
    "the file would not run as it was trained. Put the training's tokenizer and chat template next to the "
    "adapter: tokenizer.save_pretrained(DIR)"
)
SYSTEM, QUESTION = "Explain as a general doctor.", "I've had 39.5 °C since 24 May;  what now?\n- see a doctor?"
ANSWER = "Drink water. If it lasts more than 3 days, see a doctor."
CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", QUESTION),),
    (("system", SYSTEM), ("user", QUESTION)),
    (("user", QUESTION), ("assistant", ANSWER), ("user", "Thank you!")),
)
# llama.cpp strips spaces after every control token of a model with such a name (llama-vocab.cpp, "set attributes").
_NAMES = re.compile(r"phi-?3|modern-bert", re.IGNORECASE)
_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")


@dataclass(frozen=True)
class Training:
    """How training made ids of a chat.

    With a `prompt_format`, in this toolkit: each of its prompts begins with BOS if there is one, and control tokens
    are found in the format's own text. Else as in transformers: `raw` finds them anywhere in the rendered text.
    """

    tokenizer: Tokenizer
    raw: Any
    prompt_format: PromptFormat | None

    def ids(self, text: str, begin: str) -> list[int]:
        """Return the ids of a rendered chat, with one BOS in front if the model has one; `begin` is its text."""
        bos = self.tokenizer.bos
        if self.prompt_format is not None:
            plain = text.removeprefix(begin) if bos is not None else text
            return self.tokenizer.prompt_ids(Prompt((Part(plain, ours=True),)))
        ids: list[int] = self.raw.encode(text, add_special_tokens=False).ids
        return ids if bos is None or bos in ids else [bos, *ids]


def training(source: TokenizerSource, base: Path, prompt_format: PromptFormat | None = None) -> Training:
    """Load the tokenizer that training used; `prompt_format` is the toolkit's own, None for foreign training."""
    from tokenizers import Tokenizer as Encoder

    tokenizer = load_tokenizer(source.trained, eos_from=base)
    raw = Encoder.from_file(str(source.trained / "tokenizer.json"))
    raw.no_truncation()
    raw.no_padding()
    return Training(tokenizer, raw, prompt_format)


def settle(architecture: str, metadata: Metadata, trained: Training) -> Metadata:
    """Return a file's metadata, changed if needed, so that llama.cpp reads chats as training did.

    Raises ToolkitError with the first token that differs if that is impossible. Only a vocabulary in a temporary folder
    is written.
    """
    _check_texts(metadata)
    first: ToolkitError | None = None
    with tempfile.TemporaryDirectory(prefix="toolkit-") as folder:
        path = Path(folder) / "vocabulary.gguf"
        for changed, said in _ways(architecture, metadata, trained):
            with naming(path):
                path.write_bytes(gguf_writer.header(architecture, changed, []))
            try:
                check_chat(path, str(metadata[Keys.Tokenizer.CHAT_TEMPLATE][0]), trained)
            except ToolkitError as exc:
                first = first or exc
                continue
            if said:
                console.info(said)
            return changed
    assert first is not None
    raise first


def _ways(architecture: str, metadata: Metadata, trained: Training) -> Iterator[tuple[Metadata, str]]:
    """Yield the metadata as it is, then changes that may make llama.cpp read chats as training did, with messages."""
    name = str(metadata[Keys.General.NAME][0])
    names = [(name, "")]
    if _NAMES.search(name):
        other = _NAMES.sub(lambda match: match[0].replace("-", "_").replace("3", "_3").replace("__", "_"), name)
        names.append(
            (other, f"the model's name in the file is `{other}`: with `{name}`, llama.cpp assumes another vocabulary")
        )
    elif architecture == "phi3" and trained.prompt_format is None:
        other = f"{name} (phi-3)"
        names.append(
            (
                other,
                f"the model's name in the file is `{other}`: it makes llama.cpp drop the space after control tokens",
            )
        )
    prefixed = metadata.get(Keys.Tokenizer.ADD_PREFIX, (False,))[0] is True
    for prefix in (True, False) if prefixed else (None,):
        for text, said in names:
            changed = {**metadata, Keys.General.NAME: (text, GGUFValueType.STRING)}
            if prefix is False:
                changed[Keys.Tokenizer.ADD_PREFIX] = (False, GGUFValueType.BOOL)
                said = "no space is put before a text, because this tokenizer puts none after a control token"
            yield changed, said


def check_chat(path: Path, template: str, trained: Training) -> None:
    """Raise ToolkitError unless llama.cpp loads a file's vocabulary, and reads chats with it as training did."""
    with open_vocabulary(path) as file:
        texts = {"bos_token": file.text(file.bos), "eos_token": file.text(file.eos)}
        chats = list(_rendered(template, texts))
        for index, (messages, text) in enumerate(chats):
            expected, found = trained.ids(text, texts["bos_token"]), file.chat_ids(text)
            if trained.prompt_format is not None and index < 2 and len(messages) == 1 + index:
                system = messages[0][1] if index else None
                expected = trained.tokenizer.prompt_ids(render(trained.prompt_format, messages[-1][1], system))
            if expected != found:
                raise ToolkitError(_difference(expected, found, trained, file), hint=HINT)
            if file.bos is not None and found[:2] == [file.bos, file.bos]:
                raise ToolkitError(
                    f"a chat begins with `{texts['bos_token']}` twice: the chat template writes it more than once",
                    hint="remove one from the chat template next to the adapter",
                )


def warn_of_text(template: str, trained: Training) -> None:
    """Warn of what a chat template writes like control tokens, but is not in the vocabulary: it is plain text."""
    known = trained.tokenizer.controls
    texts = [text for _, text in _rendered(template, {"bos_token": "", "eos_token": ""})]
    found = dict.fromkeys(token for text in texts for token in _TOKEN.findall(text) if token not in known)
    if found:
        listed = ", ".join(f"`{token}` ({len(trained.tokenizer.encode(token))} tokens)" for token in list(found)[:4])
        console.warn(
            f"the chat template writes tokens that this vocabulary does not have; they become plain text: {listed}"
        )


def _rendered(template: str, texts: dict[str, str]) -> Iterator[tuple[tuple[tuple[str, str], ...], str]]:
    """Yield each chat with its rendering; one that the template refuses (a system message) is left out.

    Raises ToolkitError if it renders none, or is not valid Jinja.
    """
    rendered, problem = 0, "it renders nothing"
    render = renderer(template, texts)
    for messages in CHATS:
        try:
            text = render(messages)
        except Exception as exc:  # a template may raise in any way, on purpose too
            problem = f"{exc}"
            continue
        rendered += 1
        yield messages, text
    if not rendered:
        raise ToolkitError(f"the chat template does not render a question: {problem}", hint=HINT)


def renderer(template: str, texts: dict[str, str]) -> Callable[[Sequence[tuple[str, str]]], str]:
    """Return the function that renders messages (role, content) by a chat template, up to where the next answer starts.

    `texts` are its bos_token and eos_token. Raises ToolkitError for invalid Jinja; the function may raise anything.
    """
    from jinja2 import TemplateError

    try:
        compiled = _environment().from_string(_plain(template))
    except TemplateError as exc:
        raise ToolkitError(f"the chat template is not valid Jinja: {exc}", hint=HINT) from None

    def render(messages: Sequence[tuple[str, str]]) -> str:
        given = [{"role": role, "content": content} for role, content in messages]
        text: str = compiled.render(messages=given, add_generation_prompt=given[-1]["role"] == "user", **texts)
        return text

    return render


def _environment() -> Any:
    """The Jinja that transformers renders chat templates in (utils/chat_template_utils.py)."""
    import json
    from datetime import datetime

    from jinja2.exceptions import TemplateError
    from jinja2.ext import loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def refuse(message: str) -> None:
        raise TemplateError(message)

    def to_json(value: Any, indent: int | None = None, **_: Any) -> str:
        return json.dumps(value, ensure_ascii=False, indent=indent)

    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
    environment.filters["tojson"] = to_json
    now: Callable[[str], str] = datetime.now().strftime
    environment.globals.update(raise_exception=refuse, strftime_now=now, tools=None, documents=None)
    return environment


def _plain(template: str) -> str:
    """Write transformers' own `generation` blocks, which only mark the answer, as blocks that Jinja has."""
    return re.sub(r"(\{%[-+]?\s*)(end)?generation(\s*[-+]?%\})", r"\1\2if true\3", template).replace(
        "endif true", "endif"
    )


def _difference(expected: Sequence[int], found: Sequence[int], trained: Training, file: Vocabulary) -> str:
    """Say where the ids differ: the tokens of both sides, from the first difference on."""
    pairs = zip(expected, found, strict=False)
    at = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))

    def shown(ids: Sequence[int], text: Callable[[int], str | None]) -> str:
        tokens = [f"{index} `{text(index) or ''}`" for index in ids[at : at + 3]]
        return ", ".join(tokens) + (", …" if len(ids) > at + 3 else "") if tokens else "nothing"

    return (
        f"a chat has different tokens in the file than in training, from token {at + 1} on: training saw "
        f"{shown(expected, trained.raw.id_to_token)}, llama.cpp would see {shown(found, file.text)}"
    )


def _check_texts(metadata: Metadata) -> None:
    """Raise ToolkitError for two tokens of the same text: llama.cpp ends the process there."""
    texts = metadata[Keys.Tokenizer.LIST][0]
    if len(set(texts)) == len(texts):
        return
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        if text in seen:
            raise ToolkitError(
                f"tokens {seen[text]} and {index} of the vocabulary have the same text `{text}`, which llama.cpp does "
                "not load",
                hint="rename one of them in tokenizer.json",
            )
        seen[text] = index
