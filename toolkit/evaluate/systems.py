"""What an evaluation compares: the base, the trained model, and each GGUF. All are asked through one interface."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from toolkit.prompt.format import Prompt
from toolkit.prompt.tokenizer import Tokenizer

Enough = Callable[[int, str], bool]  # given a prompt's number from 0 on and its answer so far: is that enough?


@dataclass(frozen=True)
class System:
    """One system: `name` is "base", "trained" or a quantization; `path` is its GGUF file, None in transformers."""

    name: str
    kind: Literal["base", "trained", "gguf"]
    path: Path | None = None


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text, its number of tokens, and whether it ended by itself (by EOS, not by a stop)."""

    text: str
    tokens: int
    ended: bool


@dataclass(frozen=True)
class Score:
    """How likely a continuation is: the sum of its tokens' log-probabilities (nats), and whether each is the likeliest.

    `greedy` is what lm-evaluation-harness calls is_greedy.
    """

    logprob: float
    greedy: bool


class Asked(Protocol):
    """A system as it is asked."""

    @property
    def tokenizer(self) -> Tokenizer:
        """The training's, with the tokens that begin and end a text."""

    @property
    def window(self) -> int:
        """The largest number of tokens of prompt and continuation together."""

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt as training made them, BOS included where there is one."""

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS; control tokens in it are text."""

    def answers(
        self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...], enough: Enough | None = None
    ) -> Iterator[Answer]:
        """Answer each prompt greedily, to EOS, to a stop, or to that many tokens; in the order of the prompts.

        What is `enough` goes no further.
        """

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Score]:
        """Score continuations, each after the ids before it (at least one); in order. Common beginnings are cached."""


@dataclass(frozen=True)
class Waiting:
    """A system that `load` loads when it is asked something: what is known already needs no model."""

    tokenizer: Tokenizer
    window: int
    load: Callable[[], Asked]

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt as the system makes them."""
        return self.load().prompt_ids(prompt)

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS."""
        return self.load().text_ids(text)

    def answers(
        self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...], enough: Enough | None = None
    ) -> Iterator[Answer]:
        """Answer each prompt, in order."""
        return self.load().answers(prompts, tokens, stops, enough) if prompts else iter(())

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Score]:
        """Score continuations, in order."""
        return self.load().scores(pairs) if pairs else iter(())


def answer_of(tokenizer: Tokenizer, ids: list[int], ended: bool, stops: tuple[str, ...]) -> Answer:
    """Return the answer that ids without EOS are: its text up to the first stop, which is no end of its own."""
    text, stop = tokenizer.decode(ids), cut_at(tokenizer, ids, stops, whole=True)
    return Answer(text, len(ids), ended) if stop is None else Answer(text[:stop], len(ids), False)


def cut_at(tokenizer: Tokenizer, ids: list[int], stops: tuple[str, ...], *, whole: bool = False) -> int | None:
    """Return where the first stop is in the text of an answer, None if there is none.

    Only the last tokens are looked at, unless `whole`: so it is called after each one.
    """
    longest = max(map(len, stops), default=0)
    if not longest:
        return None
    text = tokenizer.decode(ids if whole else ids[-longest - 1 :])
    found = [text.index(stop) for stop in stops if stop in text]
    return min(found) if found else None


def ending(
    tokenizer: Tokenizer, stops: tuple[str, ...], enough: Enough | None, first: int = 0
) -> Callable[[int, list[int]], bool]:
    """Return what tells, by a prompt's number and its answer's ids so far, whether a stop or `enough` ends it.

    `first` is the number of a batch's first prompt among all.
    """

    def over(number: int, ids: list[int]) -> bool:
        stopped = cut_at(tokenizer, ids, stops) is not None
        return stopped or (enough is not None and enough(first + number, tokenizer.decode(ids)))

    return over


def in_order(found: Iterable[tuple[int, Answer]]) -> Iterator[Answer]:
    """Yield numbered answers by their numbers from 0 on; those that come early wait."""
    early: dict[int, Answer] = {}
    following = 0
    for number, one in found:
        early[number] = one
        while following in early:
            yield early.pop(following)
            following += 1
