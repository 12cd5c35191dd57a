"""Fit records into the context: cut the end of an answer, or drop the row, and count both."""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import replace

from toolkit.core.config import Config
from toolkit.prepare.bounds import TokenBound
from toolkit.prepare.clean import SHOWN, Record, Rejection
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer

TOO_LONG = "too long"
NO_ROOM = "the prompt leaves no room for an answer"
BATCH = 512  # records encoded at once


def fit(
    records: Sequence[Record], prompt_format: PromptFormat, bound: TokenBound, config: Config
) -> tuple[list[Record], list[Rejection]]:
    """Return the records that fit `train.max_length` tokens, prompt and EOS included, and those that cannot.

    With `data.on_too_long = "truncate"` longer ones are cut at the end of the answer, chats behind their last turn that
    fits whole. Both say how long they are whole.
    """
    limit, tokenizer = config.train.max_length, bound.tokenizer
    prompts = [
        render(prompt_format, record.question, record.instruction, record.history, tokenizer.eos_text)
        for record in records
    ]
    doubtful = bound.over(limit, [*zip(prompts, (record.answer for record in records), strict=True)])
    lengths = _lengths([(prompts[index], records[index].answer) for index in doubtful], tokenizer)
    fitted: list[Record | None] = list(records)
    rejected = []
    for index, tokens in zip(doubtful, lengths, strict=True):
        if tokens <= limit:
            continue
        record = records[index]
        fitted[index] = None
        if config.data.on_too_long == "truncate":
            fitted[index] = _cut(record, prompts[index], prompt_format, tokenizer, limit)
        if (cut := fitted[index]) is not None:
            fitted[index] = replace(cut, tokens=tokens)
            continue
        reason = TOO_LONG if config.data.on_too_long == "drop" else NO_ROOM
        detail = f"{tokens:,} tokens, train.max_length is {limit:,}"
        text = f"{record.question} | {record.answer}"[:SHOWN]
        rejected.append(Rejection(record.number, record.line, reason, text, detail, tokens, record.file))
    return [record for record in fitted if record is not None], rejected


def _cut(
    record: Record, prompt: Prompt, prompt_format: PromptFormat, tokenizer: Tokenizer, limit: int
) -> Record | None:
    """Cut the end of a record so that it fits: of a chat the last turns, of its only turn the answer.

    Return None if its first prompt leaves no room for an answer.
    """
    turns = [*record.history, (record.question, record.answer)]

    def prompt_of(last: int) -> Prompt:
        return render(prompt_format, turns[last][0], record.instruction, turns[:last], tokenizer.eos_text)

    def is_too_long(last: int) -> bool:
        return len(tokenizer.record_ids(prompt_of(last), turns[last][1])[0]) > limit

    last = bisect_left(range(len(turns) - 1), True, key=is_too_long) - 1  # all together are too long
    if last < 0:
        answer = tokenizer.shorten(prompt_of(0) if record.history else prompt, turns[0][1], limit)
        if answer is None:
            return None
        question, truncated, last = turns[0][0], True, 0
    else:
        (question, answer), truncated = turns[last], False
    left_out = len(turns) - 1 - last
    return replace(
        record,
        history=tuple(turns[:last]),
        question=question,
        answer=answer,
        truncated=truncated,
        left_out=left_out,
    )


def fitting_length(records: Iterable[Record | Rejection], share: float, limit: int) -> int:
    """Return the `train.max_length` at which a share of the records would fit whole: `limit` where they do already.

    Of records that `fit` found to be longer, kept ones and rejected ones, it takes their own length.
    """
    lengths = sorted(record.tokens or limit for record in records)
    return lengths[max(0, math.ceil(share * len(lengths)) - 1)] if lengths else limit


def _lengths(pairs: list[tuple[Prompt, str]], tokenizer: Tokenizer) -> list[int]:
    """Return how many tokens `tokenizer.record_ids` gives for each prompt and answer, encoding many at once."""
    lengths = []
    added = (tokenizer.bos is not None) + 1  # BOS and EOS
    for start in range(0, len(pairs), BATCH):
        batch = [(_last_run(prompt, tokenizer), answer) for prompt, answer in pairs[start : start + BATCH]]
        prompts = tokenizer.encode_batch([run for (run, _), _ in batch])
        wholes = tokenizer.encode_batch([run + answer for (run, _), answer in batch])
        for ((_, before), answer), prompt, whole in zip(batch, prompts, wholes, strict=True):
            count = before + len(whole)
            if whole[: len(prompt)] != prompt:  # the answer is then encoded alone
                count = before + len(prompt) + len(tokenizer.encode(answer))
            lengths.append(count + added)
    return lengths


def _last_run(prompt: Prompt, tokenizer: Tokenizer) -> tuple[str, int]:
    """Return the text after the prompt's last control token, which its answer joins, and the ids before it."""
    runs = tokenizer.segments(prompt)
    last = runs.pop() if runs and isinstance(runs[-1], str) else ""
    return str(last), sum(1 if isinstance(run, int) else len(tokenizer.encode(run)) for run in runs)
