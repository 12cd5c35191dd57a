"""One GGUF file in llama.cpp: does it read the prompts as training did, and how far is it from the trained model?"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit import llamacpp
from toolkit.core import console, hardware
from toolkit.llamacpp import recurrent, together
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import Record
from toolkit.prompt.tokenizer import Tokenizer
from toolkit.validate.metrics import Distance, Logits, compare, join, penalised
from toolkit.validate.recomputed import Recomputed

EXAMPLES = 3  # unequal texts that are kept with both lists of ids


@dataclass(frozen=True)
class Parity:
    """Whether the GGUF's vocabulary gives training's ids: how many texts differ, and the first of them.

    `differences` name EOS, BOS, chat template and vocabulary size if they differ from the trained model's.
    """

    prompts: int
    unequal_prompts: int
    unequal_records: int
    examples: list[dict[str, Any]]
    differences: list[str]


@dataclass(frozen=True)
class Measurement:
    """What was measured in one file; `distance` is None if the vocabulary's size differs from the reference's.

    `penalised` is the distance with a repeat penalty, if one was asked for.
    """

    parity: Parity
    distance: Distance | None
    bits_per_weight: float
    answers: list[str] = field(default_factory=list)
    penalised: Distance | None = None


def measure(
    path: Path,
    quantization: str,
    records: Sequence[Record],
    scored: list[Record],
    reference: Recomputed,
    tokenizer: Tokenizer,
    template: str,
    prompts: list[Prompt],
    tokens: int,
    stops: tuple[str, ...],
    penalty: float = 1.0,
) -> Measurement:
    """Compare the ids of all `records`, and the logits of the `scored` ones with `reference`; answer the `prompts`.

    F32 runs with a float32 KV cache, so that nothing but rounding is left; all others as llama.cpp runs them.
    Raises ToolkitError if llama.cpp does not load the file.
    """
    longest = max(
        [len(record.ids) for record in scored] + [len(tokenizer.prompt_ids(prompt)) + tokens for prompt in prompts]
    )
    free = hardware.available_memory()
    crowded = free is not None and path.stat().st_size > free
    with llamacpp.opened(path, longest + 1, exact=quantization == "F32") as llm:
        parity = check_parity(llm, records, tokenizer, template, reference.shape[1])
        distance = with_penalty = None
        facts = llamacpp.facts(llm)
        if facts.vocabulary == reference.shape[1]:
            most = recurrent.sequences(path, together.SEQUENCES) if crowded else 0
            distance, with_penalty = _distance(llm, quantization, scored, reference, penalty, most)
        answers = _answers(llm, quantization, prompts, tokens, stops)
    return Measurement(parity, distance, facts.bits, answers, with_penalty)


def _answers(llm: Any, quantization: str, prompts: list[Prompt], tokens: int, stops: tuple[str, ...]) -> list[str]:
    """Answer the prompts greedily, with `tokens` tokens at most."""
    found = []
    with console.progress(f"answers of {quantization}", tokens * len(prompts), "tokens") as bar:
        for prompt in prompts:
            pieces = []
            for piece in llamacpp.generate(llm, llamacpp.tokenize(llm, prompt), tokens, stops, llamacpp.Sampling()):
                pieces.append(piece)
                if len(pieces) <= tokens:  # a last piece says only why it ended
                    bar.advance()
            bar.skip(max(0, tokens - len(pieces)))  # it ended early
            found.append("".join(pieces))
    return found


def check_parity(llm: Any, records: Sequence[Record], tokenizer: Tokenizer, template: str, vocabulary: int) -> Parity:
    """Compare ids, EOS, BOS, chat template and vocabulary size of a loaded GGUF with the trained model's."""
    unequal_prompts = unequal_records = 0
    examples: list[dict[str, Any]] = []
    for record in records:
        for what, text in (("prompt", record.prompt), ("record", record.prompt + record.answer)):
            expected, found = tokenizer.prompt_ids(text), llamacpp.tokenize(llm, text)
            if expected == found:
                continue
            unequal_prompts += what == "prompt"
            unequal_records += what == "record"
            if len(examples) < EXAMPLES:
                examples.append({"row": record.row, "what": what, "expected": expected, "found": found})
    return Parity(
        len(records), unequal_prompts, unequal_records, examples, _differences(llm, tokenizer, template, vocabulary)
    )


def _differences(llm: Any, tokenizer: Tokenizer, template: str, vocabulary: int) -> list[str]:
    found, facts = [], llamacpp.facts(llm)
    if facts.eos != tokenizer.eos:
        found.append(f"EOS is {facts.eos}, but training used {tokenizer.eos} (`{tokenizer.eos_text}`)")
    # The tokens that the vocabulary really adds to a text count, not the flags: an absent flag means something else for
    # each kind of vocabulary.
    plain, whole = llamacpp.text_ids(llm, "x"), llamacpp.text_ids(llm, "x", bos=True)
    expected = [] if tokenizer.bos is None else [tokenizer.bos]
    if whole != expected + plain:
        found.append(
            f"a text becomes {whole}, but training puts {expected or 'no BOS'} before {plain} and nothing after"
        )
    if facts.chat_template is None:
        found.append("it has no chat template")
    elif facts.chat_template != template:
        found.append("its chat template does not match these prompt settings")
    if facts.vocabulary != vocabulary:
        found.append(f"its vocabulary has {facts.vocabulary:,} tokens, the trained model's has {vocabulary:,}")
    return found


def _distance(
    llm: Any, quantization: str, scored: list[Record], reference: Recomputed, penalty: float, most: int
) -> tuple[Distance, Distance | None]:
    """Compare the logits of the scored rows; a second time with a repeat penalty, unless that is 1.

    `most` rows share one reading of a file larger than memory; with 0 each is evaluated for itself.
    """
    parts, with_penalty = [], []
    position = 0
    with console.progress(f"{quantization} in llama.cpp", sum(len(record.seen) for record in scored), "tokens") as bar:
        for record, found in zip(scored, _logits(llm, scored, most), strict=True):
            rows = slice(position, position + len(record.targets))
            position = rows.stop
            expected = reference[rows]
            parts.append(compare(expected, found, record.targets))
            if penalty != 1:
                changed = penalised(found, record.seen, record.first, penalty)
                with_penalty.append(compare(expected, changed, record.targets))
            bar.advance(len(record.seen), f"mean KL {np.concatenate([part.kl for part in parts]).mean():.2g}")
    return join(parts), join(with_penalty) if with_penalty else None


def _logits(llm: Any, scored: list[Record], most: int) -> Iterator[Logits]:
    if not most:
        yield from (llamacpp.logits(llm, record.seen, record.first) for record in scored)
        return
    for group in together.groups([(record.seen, record.first) for record in scored], most):
        yield from together.logits_together(llm, group)
