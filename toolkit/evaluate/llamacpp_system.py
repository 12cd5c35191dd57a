"""A GGUF in llama.cpp, asked as the other systems are."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from toolkit import llamacpp
from toolkit.evaluate.scoring import Pair, llamacpp_scores
from toolkit.evaluate.systems import Answer, Asked, Enough, Score, answer_of, ending, in_order
from toolkit.llamacpp.batched import answer_all, at_once
from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer


@dataclass(frozen=True)
class LlamaCppSystem:
    """A loaded GGUF; answers are decoded by the training's tokenizer, so that equal ids are equal texts.

    What was begun and not asked to its end is closed by `begun`, before the model that it uses.
    """

    llm: Any
    path: Path
    tokenizer: Tokenizer
    window: int
    begun: contextlib.ExitStack = field(default_factory=contextlib.ExitStack)

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids that the GGUF's own vocabulary gives to a prompt."""
        return llamacpp.tokenize(self.llm, prompt)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS; control tokens in it are text."""
        return llamacpp.text_ids(self.llm, text)

    def answers(
        self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...], enough: Enough | None = None
    ) -> Iterator[Answer]:
        """Answer each prompt greedily, several at once; in the order of the prompts."""
        given = [self.prompt_ids(prompt) for prompt in prompts]
        if not given:
            return
        count = at_once(self.path, max(map(len, given)) + tokens)
        found = answer_all(self.llm, given, tokens, count, ending(self.tokenizer, stops, enough))
        self.begun.callback(found.close)
        yield from in_order((number, answer_of(self.tokenizer, ids, ended, stops)) for number, ids, ended in found)

    def scores(self, pairs: Sequence[Pair]) -> Iterator[Score]:
        """Score continuations, each after the ids before it; in order."""
        found = llamacpp_scores(self.llm, pairs)
        self.begun.callback(found.close)
        return found


def device_words(path: Path) -> str:
    """Say where a GGUF computes."""
    layers = llamacpp.gpu_layers(path)
    return "CPU" if layers == 0 else "GPU" if layers < 0 else f"GPU ({layers} layers) and CPU"


@contextlib.contextmanager
def opened_gguf(path: Path, tokenizer: Tokenizer, window: int, *, exact: bool) -> Iterator[Asked]:
    """Load a GGUF with room for `window` tokens; raises ToolkitError if it does not load."""
    with llamacpp.opened(path, window, exact=exact) as llm, contextlib.ExitStack() as begun:
        yield LlamaCppSystem(llm, path, tokenizer, window, begun)
