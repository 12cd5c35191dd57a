"""Fit records into the context: cut the end of an answer, or drop the row, and count both."""

import math
from collections.abc import Sequence
from dataclasses import replace

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.prepare.clean import SHOWN, Record, Rejection
from toolkit.prompt.format import Prompt, PromptFormat
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer

TOO_LONG = "too long"
NO_ROOM = "the prompt leaves no room for an answer"
BATCH = 512  # records encoded at once
# Tokens that text of n bytes may have beyond n: BOS, EOS, and a space that the tokenizer puts before prompt and answer.
MARGIN = 4


def fit(
    records: list[Record], prompt_format: PromptFormat, tokenizer: Tokenizer, config: Config
) -> tuple[list[Record], list[Rejection]]:
    """Return the records that fit `train.max_length` tokens, prompt and EOS included, and those that cannot.

    With `data.on_too_long = "truncate"` longer ones are cut at the end of the answer. Both say how long they are whole.
    """
    limit = config.train.max_length
    prompts = [render(prompt_format, record.question, record.instruction) for record in records]
    doubtful = list(range(len(records)))
    if is_byte_level(tokenizer):
        doubtful = [
            index for index in doubtful if most_tokens(prompts[index].text + records[index].answer, tokenizer) > limit
        ]
    lengths = _lengths([(prompts[index], records[index].answer) for index in doubtful], tokenizer)
    fitted: list[Record | None] = list(records)
    rejected = []
    for index, tokens in zip(doubtful, lengths, strict=True):
        if tokens <= limit:
            continue
        record = records[index]
        answer = None
        if config.data.on_too_long == "truncate":
            answer = tokenizer.shorten(prompts[index], record.answer, limit)
        if answer is not None:
            fitted[index] = replace(record, answer=answer, truncated=True, tokens=tokens)
            continue
        fitted[index] = None
        reason = TOO_LONG if config.data.on_too_long == "drop" else NO_ROOM
        detail = f"{tokens:,} tokens, train.max_length is {limit:,}"
        text = f"{record.question} | {record.answer}"[:SHOWN]
        rejected.append(Rejection(record.number, record.line, reason, text, detail, tokens, record.file))
    return [record for record in fitted if record is not None], rejected


def fitting_length(records: Sequence[Record | Rejection], share: float, limit: int) -> int:
    """Return the `train.max_length` at which a share of the records would fit whole: `limit` where they do already.

    Of records that `fit` found to be longer, kept ones and rejected ones, it takes their own length.
    """
    lengths = sorted(record.tokens or limit for record in records)
    return lengths[max(0, math.ceil(share * len(lengths)) - 1)] if lengths else limit


def most_tokens(text: str, tokenizer: Tokenizer) -> int:
    """Return more tokens than a record can have, without encoding: a token of byte-level BPE has at least one byte."""
    if tokenizer.encoder.normalizer is not None and not text.isascii():
        text = tokenizer.encoder.normalizer.normalize_str(text)
    return len(text.encode("utf-8")) + MARGIN


def is_byte_level(tokenizer: Tokenizer) -> bool:
    """Say whether the tokenizer cuts bytes into tokens, as GPT-2's and Llama 3's do."""
    pre_tokenizer = tokenizer.encoder.pre_tokenizer
    return type(tokenizer.encoder.model).__name__ == "BPE" and "ByteLevel(" in repr(pre_tokenizer)


def _lengths(pairs: list[tuple[Prompt, str]], tokenizer: Tokenizer) -> list[int]:
    """Return how many tokens `tokenizer.record_ids` gives for each prompt and answer, encoding many at once."""
    lengths = []
    added = (tokenizer.bos is not None) + 1  # BOS and EOS
    with console.progress("measuring long records", len(pairs), "records") as bar:
        for start in range(0, len(pairs), BATCH):
            batch = [(_last_run(prompt, tokenizer), answer) for prompt, answer in pairs[start : start + BATCH]]
            prompts = tokenizer.encode_batch([run for (run, _), _ in batch])
            wholes = tokenizer.encode_batch([run + answer for (run, _), answer in batch])
            for ((_, before), answer), prompt, whole in zip(batch, prompts, wholes, strict=True):
                count = before + len(whole)
                if whole[: len(prompt)] != prompt:  # the answer is then encoded alone
                    count = before + len(prompt) + len(tokenizer.encode(answer))
                lengths.append(count + added)
            bar.advance(len(batch))
    return lengths


def _last_run(prompt: Prompt, tokenizer: Tokenizer) -> tuple[str, int]:
    """Return the text after the prompt's last control token, which its answer joins, and the ids before it."""
    runs = tokenizer.segments(prompt)
    last = runs.pop() if runs and isinstance(runs[-1], str) else ""
    return str(last), sum(1 if isinstance(run, int) else len(tokenizer.encode(run)) for run in runs)
