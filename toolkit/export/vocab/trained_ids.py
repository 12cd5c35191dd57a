"""How training made ids of a chat, with the tokenizer that it used."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.export.vocab.added_tokens import AddedToken, added_tokens
from toolkit.export.vocab.tokenizer_source import DAMAGED, TokenizerSource, token_ids
from toolkit.prompt.format import Part, Prompt, PromptFormat
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.prompt.tokenizer_json import read_layout


@dataclass(frozen=True)
class Training:
    """How training made ids of a chat.

    With a `prompt_format`, in this toolkit: each of its prompts begins with BOS if there is one, and control tokens
    are found in the format's own text. Else as in transformers: `raw` finds them anywhere in the rendered text.
    `added` are the added tokens that a question may hold, `path` is their file. `own` are control tokens with a flag
    that the base itself gives them. `template_of_base` says that the chat template is the base's own, which is kept.
    """

    tokenizer: Tokenizer
    prompt_format: PromptFormat | None
    added: tuple[AddedToken, ...]
    path: Path
    own: tuple[AddedToken, ...] = ()
    template_of_base: bool = False

    @functools.cached_property
    def raw(self) -> Any:
        """The tokenizer as transformers has it."""
        from tokenizers import Tokenizer as Encoder

        encoder = Encoder.from_file(str(self.path))
        encoder.no_truncation()
        encoder.no_padding()
        return encoder

    @property
    def strips(self) -> bool:
        """Whether training dropped the space after some token."""
        return any("rstrip" in token.flags for token in (*self.added, *self.own))

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
    tokenizer = load_tokenizer(source.trained, eos_from=base)
    path = source.trained / "tokenizer.json"
    flagged = {each for each in added_tokens(read_layout(base, DAMAGED)) if each.special and each.flags}
    own = flagged if prompt_format is None else frozenset()
    added = tuple(token for token in _in_questions(source, tokenizer, prompt_format) if token not in own)
    return Training(tokenizer, prompt_format, added, path, tuple(own))


def _in_questions(
    source: TokenizerSource, tokenizer: Tokenizer, prompt_format: PromptFormat | None
) -> Iterator[AddedToken]:
    """Yield the added tokens that training found in a question, of those that the file has.

    This toolkit finds no control token there. Elsewhere one that nobody writes into a question does no harm; but one
    with a flag was trained on with other neighbours than llama.cpp gives it.
    """
    layout = read_layout(source.trained, DAMAGED)
    there = token_ids(read_layout(source.folder, DAMAGED))
    for token in added_tokens(layout):
        found = token.text not in tokenizer.controls if prompt_format is not None else token.flags or not token.special
        if found and token.text in there and token.text != tokenizer.bos_text:
            yield token
