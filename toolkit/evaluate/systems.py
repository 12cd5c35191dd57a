"""What an evaluation compares: the base, the trained model, and each GGUF. All are asked through one interface."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from toolkit.prompt.format import Prompt


@dataclass(frozen=True)
class System:
    """One system: `name` is "base", "trained" or a quantization; `path` is its GGUF file, None in transformers."""

    name: str
    kind: Literal["base", "trained", "gguf"]
    path: Path | None = None


@dataclass(frozen=True)
class Answer:
    """One greedy answer: its text, its number of tokens, and whether it ended by itself."""

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
    """A loaded system. `window` is the largest number of tokens of prompt and continuation together."""

    bos: int | None
    eos: int
    window: int

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        """Return the ids of a prompt as training made them, BOS included where there is one."""

    def text_ids(self, text: str) -> list[int]:
        """Return the ids of a plain text, without BOS; control tokens in it are text."""

    def answers(self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...]) -> Iterator[Answer]:
        """Answer each prompt greedily, to EOS, to a stop, or to that many tokens; in the order of the prompts."""

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Score]:
        """Score continuations, each after the ids before it (at least one); in order. Common beginnings are cached."""
