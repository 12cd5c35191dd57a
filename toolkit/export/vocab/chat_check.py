"""The check of every export: a chat becomes the same ids in llama.cpp as in training.

The vocabulary of the very file is loaded, a few messages are rendered by the chat template in it, and tokenized by the
training's tokenizer and by the file. What llama.cpp takes from elsewhere than the tokenizer (a model's name decides how
it treats spaces, for instance) is written so that the ids are equal, if possible; else the export is refused.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from gguf import GGUFValueType, Keys

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import naming, scratch_folder
from toolkit.export.jinja_render import HINT, Chat, renderer
from toolkit.export.vocab.added_tokens import AddedToken
from toolkit.export.vocab.chats import CHATS, PLAIN, SPACED, rendered_chats
from toolkit.export.vocab.trained_ids import Training
from toolkit.formats import gguf_writer
from toolkit.formats.gguf_writer import Metadata
from toolkit.llamacpp.vocabulary import Vocabulary, open_vocabulary
from toolkit.prompt.renderings import render

# llama.cpp strips spaces after every control token of a model with such a name (llama-vocab.cpp, "set attributes").
_NAMES = re.compile(r"phi-?3|modern-bert", re.IGNORECASE)
_TOKEN = re.compile(r"<\|[^|<>\s]{1,40}\|>")


def settle(architecture: str, metadata: Metadata, trained: Training) -> Metadata:
    """Return a file's metadata, changed if needed, so that llama.cpp reads chats as training did.

    Raises ToolkitError with the first token that differs if that is impossible. Where only the base's own flags make
    messages differ that begin or end with spaces, that is warned of. Only a vocabulary in a temporary folder is
    written.
    """
    _check_texts(metadata)
    first: ToolkitError | None = None
    ways = [(*way, SPACED) for way in _ways(architecture, metadata, trained)]
    ways += [(changed, said, ()) for changed, said, _ in reversed(ways) if trained.own]
    with scratch_folder("vocabulary") as folder:
        path = folder / "vocabulary.gguf"
        for changed, said, spaced in ways:
            with naming(path):
                path.write_bytes(gguf_writer.header(architecture, changed, []))
            try:
                check_chat(path, str(metadata[Keys.Tokenizer.CHAT_TEMPLATE][0]), trained, spaced)
            except ToolkitError as exc:
                first = first or exc
                continue
            if said:
                console.info(said)
            if not spaced:
                console.warn(
                    f"the base gives `{trained.own[0].text}` the flag `{trained.own[0].flags[0]}`, which llama.cpp "
                    "does not have: a message that begins or ends with spaces has other tokens than in training"
                )
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
    elif trained.prompt_format is None and (
        architecture == "phi3" or any("rstrip" in t.flags for t in (*trained.added, *trained.own))
    ):
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


def check_chat(path: Path, template: str, trained: Training, spaced: Sequence[Chat] = ()) -> None:
    """Raise ToolkitError unless llama.cpp loads a file's vocabulary, and reads chats with it as training did.

    `spaced` are chats with spaces around their messages that are tried too.
    """
    with open_vocabulary(path) as file:
        texts = {"bos_token": file.text(file.bos), "eos_token": file.text(file.eos)}
        chats = rendered_chats(template, texts, (*PLAIN, *spaced), may_hide=trained.template_of_base)
        for index, (messages, text) in enumerate(chats):
            expected, found = trained.ids(text, texts["bos_token"]), file.chat_ids(text)
            if trained.prompt_format is not None and index < 2 and len(messages) == 1 + index:
                system = messages[0][1] if index else None
                expected = trained.tokenizer.prompt_ids(render(trained.prompt_format, messages[-1][1], system))
            if expected != found:
                raise _differs(expected, found, trained, file, [token for token in trained.added if token.text in text])
            if file.bos is not None and found[:2] == [file.bos, file.bos]:
                raise ToolkitError(
                    f"a chat begins with `{texts['bos_token']}` twice: the chat template writes it more than once",
                    hint="remove one from the chat template next to the adapter",
                )
        write = renderer(template, texts)
        for token in trained.added:
            try:
                text = write([("user", token.probe)])
            except Exception:  # a template may raise in any way
                continue
            if trained.prompt_format is not None:
                expected = trained.tokenizer.prompt_ids(render(trained.prompt_format, token.probe))
            else:
                expected = trained.ids(text, texts["bos_token"])
            found = file.chat_ids(text)
            if expected != found:
                raise _differs(expected, found, trained, file, [token])


def warn_of_text(template: str, trained: Training) -> None:
    """Warn of what a chat template writes like control tokens, but is not in the vocabulary: it is plain text.

    Warns of a base's own template, too, that does not show the question of a chat.
    """
    known, names = trained.tokenizer.controls, {"bos_token": "", "eos_token": ""}
    try:
        texts = [text for _, text in rendered_chats(template, names, CHATS)]
    except ToolkitError as exc:
        if not trained.template_of_base:
            raise
        texts = [text for _, text in rendered_chats(template, names, CHATS, may_hide=True)]
        console.warn(
            f"{exc.message}, and the model would answer without it; it is the base's own: "
            "--set prompt.preset=NAME chooses another"
        )
    found = dict.fromkeys(token for text in texts for token in _TOKEN.findall(text) if token not in known)
    if found:
        listed = ", ".join(f"`{token}` ({len(trained.tokenizer.encode(token))} tokens)" for token in list(found)[:4])
        console.warn(
            f"the chat template writes tokens that this vocabulary does not have; they become plain text: {listed}"
        )


def _differs(
    expected: Sequence[int], found: Sequence[int], trained: Training, file: Vocabulary, tokens: Sequence[AddedToken]
) -> ToolkitError:
    """Say where the ids differ: the tokens of both sides, from the first difference on, and flags of added `tokens`."""
    pairs = zip(expected, found, strict=False)
    at = next((index for index, (one, other) in enumerate(pairs) if one != other), min(len(expected), len(found)))

    def shown(ids: Sequence[int], text: Callable[[int], str | None]) -> str:
        tokens = [f"{index} `{text(index) or ''}`" for index in ids[at : at + 3]]
        return ", ".join(tokens) + (", …" if len(ids) > at + 3 else "") if tokens else "nothing"

    flagged = [token for token in tokens if token.flags]
    which = f"a chat with `{tokens[0].text}`" if tokens and not flagged else "a chat"
    message = (
        f"{which} has different tokens in the file than in training, from token {at + 1} on: training saw "
        f"{shown(expected, trained.tokenizer.encoder.id_to_token)}, llama.cpp would see {shown(found, file.text)}"
    )
    if not flagged and which == "a chat":
        return ToolkitError(message, hint=HINT)
    if not flagged:
        return ToolkitError(
            message,
            hint="llama.cpp treats the spaces around this token differently: if the model was trained without it, "
            "remove it from `added_tokens` in tokenizer.json next to the adapter (tokenizer.save_pretrained(DIR))",
        )
    flags = ", ".join(f"`{flag}`" for flag in flagged[0].flags)
    return ToolkitError(
        f"{message}. `{trained.path}` gives `{flagged[0].text}` the flag {flags}, which llama.cpp does not have",
        hint=f"if the model was trained without this token, set {flags} to false in tokenizer.json next to the adapter "
        "(tokenizer.save_pretrained(DIR) writes it); else train it again with that tokenizer",
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
