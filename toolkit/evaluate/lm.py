"""A loaded system as lm-evaluation-harness asks it. Import this module where the extra [evaluate] is installed."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any

from lm_eval import utils
from lm_eval.api.model import TemplateLM

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.evaluate.scoring import Pair
from toolkit.evaluate.systems import Asked
from toolkit.prompt.format import Part, Prompt

ANSWER_TOKENS = 256  # lm-eval's own default, where a task names none
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # a task names one of them


class AskedLM(TemplateLM):  # type: ignore[misc]
    """Ask a system as lm-eval 0.4.13 asks its own `hf` model, without a chat template: published figures are such.

    Ids are those of plain text, with BOS where the base's tokenizer adds one; control tokens in a task's text are text.
    Texts that are too long lose their beginning, as in lm-eval, and that is said once.
    """

    def __init__(self, asked: Asked) -> None:
        super().__init__()
        self.asked = asked
        self._shortened = False

    @property
    def eot_token_id(self) -> int:
        """EOS."""
        return self.asked.tokenizer.eos

    @property
    def prefix_token_id(self) -> int:
        """What comes before a text that follows nothing."""
        bos = self.asked.tokenizer.bos
        return self.asked.tokenizer.eos if bos is None else bos

    @property
    def max_length(self) -> int:
        """The largest number of tokens that a model reads before it predicts the last one."""
        return self.asked.window - 1

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Return the ids of a text, with BOS unless `add_special_tokens` is False."""
        ids, bos = self.asked.text_ids(string), self.asked.tokenizer.bos
        return ids if add_special_tokens is False or bos is None else [bos, *ids]

    def responses(self, kind: str, arguments: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        """Yield the response to each request as soon as it is there, in order; `kind` is lm-eval's request type."""
        if kind == "loglikelihood":
            yield from self._likelihoods(arguments)
        elif kind == "loglikelihood_rolling":
            yield from self._rolling(text for (text,) in arguments)
        elif kind == "generate_until":
            yield from self._generated(arguments)
        else:
            raise ToolkitError(f"lm-eval asks for `{kind}`, which the toolkit does not know")

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        """Return log-probability (nats) and is_greedy of each continuation."""
        return list(self._likelihoods([request.args for request in requests]))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[float]:
        """Return the log-probability of each whole text, in windows that do not overlap."""
        return list(self._rolling(request.args[0] for request in requests))

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = True) -> list[str]:
        """Return a greedy answer to each text; raises ToolkitError for a task that samples."""
        return list(self._generated([request.args for request in requests]))

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[tuple[float, bool]]:
        scores = self.asked.scores([self._fitting(before, after) for _, before, after in requests])
        return [(score.logprob, score.greedy) for score in scores]

    def _likelihoods(self, arguments: Iterable[tuple[Any, ...]]) -> Iterator[tuple[float, bool]]:
        pairs = [self._pair(context, continuation) for context, continuation, *_ in arguments]
        yield from ((score.logprob, score.greedy) for score in self.asked.scores(pairs))

    def _pair(self, context: str, continuation: str) -> Pair:
        """Return the ids of a text and of what follows it, cut where lm-eval cuts them."""
        if context:
            before, after = self._encode_pair(context, continuation)
            if not after and continuation:  # its tokens grew together with the last ones before it
                whole = self.tok_encode(context + continuation)
                before, after = whole[:-1], whole[-1:]
        else:
            before, after = [self.prefix_token_id], self.tok_encode(continuation, add_special_tokens=False)
            if after[:1] == before:
                before, after = after[:1], after[1:]
        return self._fitting(before or [self.prefix_token_id], after)

    def _fitting(self, before: list[int], after: list[int]) -> Pair:
        """Cut the beginning of a text that is too long."""
        room = self.max_length + 1
        if len(after) >= room:
            raise ToolkitError(
                f"an answer to choose has {len(after):,} tokens, and the model's window is {room:,}",
                hint="leave that task out of `evaluate.tasks`",
            )
        if len(before) + len(after) > room:
            self._say_shortened()
            before = before[len(before) + len(after) - room :]
        return before, after

    def _say_shortened(self) -> None:
        if not self._shortened:
            console.warn(f"a text is longer than the window of {self.asked.window:,} tokens: its beginning is left out")
        self._shortened = True

    def _rolling(self, texts: Iterable[str]) -> Iterator[float]:
        """Yield the sums of texts; like lm-eval, BOS is put before the ids of a text, which begin with BOS."""
        parts: list[list[Pair]] = []
        for text in texts:
            ids = self.tok_encode(text)
            windows = utils.get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, 1)
            parts.append([utils.make_disjoint_window(window) for window in windows])
        scores = self.asked.scores([pair for pairs in parts for pair in pairs])
        for pairs in parts:
            yield sum(next(scores).logprob for _ in pairs)

    def _generated(self, arguments: Iterable[tuple[Any, ...]]) -> Iterator[str]:
        wanted = [(context, *_limits(options)) for context, options, *_ in arguments]
        for (tokens, stops), alike in groupby(wanted, key=lambda one: one[1:]):
            prompts = [self._prompt(context, tokens) for context, *_ in alike]
            for answer in self.asked.answers(prompts, tokens, stops):
                ends = [answer.text.index(stop) for stop in stops if stop in answer.text]
                yield answer.text[: min(ends)] if ends else answer.text

    def _prompt(self, context: str, tokens: int) -> Prompt:
        """Make a prompt of a text; its beginning is cut, a tenth at a time, until an answer has room after it."""
        room = self.asked.window - tokens
        if room < 1:
            raise ToolkitError(
                f"a task's answers may have {tokens:,} tokens, and the model's window is {self.asked.window:,}",
                hint="leave that task out of `evaluate.tasks`",
            )
        prompt = Prompt((Part(context, ours=False),))
        while len(context) > 1 and len(self.asked.prompt_ids(prompt)) > room:
            self._say_shortened()
            context = context[len(context) // 10 + 1 :]
            prompt = Prompt((Part(context, ours=False),))
        return prompt


def _limits(options: dict[str, Any]) -> tuple[int, tuple[str, ...]]:
    """Return the most tokens of an answer and the texts that end it; raises ToolkitError for one that is sampled."""
    if options.get("do_sample") and float(options.get("temperature") or 0) > 0:
        raise ToolkitError(
            f"a task samples its answers (temperature {options['temperature']}), and systems answer greedily here",
            hint="leave that task out of `evaluate.tasks`",
        )
    until = options.get("until") or []
    tokens = next((int(options[name]) for name in LENGTHS if options.get(name)), ANSWER_TOKENS)
    return tokens, tuple(text for text in ([until] if isinstance(until, str) else until) if text)
