"""Several questions answered at once by one GGUF: each pass of llama.cpp reads the weights once for all of them.

Every sequence has a stream of the KV cache of its own. Where one ends, the next question takes its place, or else the
last sequence: llama.cpp computes only neighbours together.
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import open_gguf
from toolkit.llamacpp.recurrent import recurrent_layers, state_bytes
from toolkit.llamacpp.remote import beside_file

MOST = 16  # sequences: with more of them a CPU computes longer than it reads
CACHE = 750_000_000  # bytes of the KV cache: half of what is left free on a GPU
PASS = 512  # tokens of prompts in one pass


@dataclass
class Sequenced:
    """One question in work: its number, the ids of its prompt, and those of its answer so far."""

    number: int
    prompt: Sequence[int]
    answer: list[int] = field(default_factory=list)
    read: int = 0  # ids of the prompt that llama.cpp has seen


def at_once(path: Path, length: int) -> int:
    """Return how many sequences of `length` tokens a GGUF file can hold at once, from 1 to 16."""
    metadata = open_gguf(path).metadata
    sizes = f"{metadata.get('general.architecture')}."

    def number(key: str, other: int) -> int:
        found = metadata.get(sizes + key)
        return int(max(found)) if isinstance(found, list) else int(found or other)

    heads = number("attention.head_count", 1)
    width = number("attention.key_length", number("embedding_length", 4096) // heads)
    attending = number("block_count", 32) - recurrent_layers(metadata)
    token = 2 * 2 * attending * number("attention.head_count_kv", heads) * width
    return max(1, min(MOST, CACHE // (token * length + state_bytes(metadata))))


@beside_file
def answer_all(
    llm: Any, prompts: Sequence[Sequence[int]], tokens: int, count: int, over: Callable[[int, list[int]], bool]
) -> Generator[tuple[int, list[int], bool], None, None]:
    """Answer prompts greedily, `count` at once; yield (number of the prompt, ids of its answer, ended) as each ends.

    An answer ends at a token that the vocabulary calls an end, which is left out, at `tokens` tokens, or where `over`
    says so of its number and ids. Raises ToolkitError if llama.cpp has no memory for them, or cannot evaluate them.
    """
    import llama_cpp

    longest = max(len(prompt) for prompt in prompts) + tokens
    params = type(llm.context_params).from_buffer_copy(llm.context_params)
    params.n_seq_max = count = min(count, len(prompts))
    params.n_ctx, params.kv_unified = count * (-(-longest // 256) * 256), False  # llama.cpp's streams are so rounded
    params.n_batch = params.n_ubatch = PASS
    params.n_threads_batch = params.n_threads  # one for a small model: threads would wait for each other
    context = llama_cpp.llama_init_from_model(llm.model, params)
    if not context:
        raise ToolkitError(f"llama.cpp has no memory for {count} answers of {longest:,} tokens at once")
    batch = llama_cpp.llama_batch_init(PASS, 0, 1)
    try:
        yield from _work(llm, context, batch, prompts, tokens, count, over)
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)


def _work(
    llm: Any,
    context: Any,
    batch: Any,
    prompts: Sequence[Sequence[int]],
    tokens: int,
    count: int,
    over: Callable[[int, list[int]], bool],
) -> Iterator[tuple[int, list[int], bool]]:
    import llama_cpp

    vocabulary = llama_cpp.llama_model_get_vocab(llm.model)
    memory, width = llama_cpp.llama_get_memory(context), llm.n_vocab()
    waiting = [Sequenced(number, prompt) for number, prompt in enumerate(prompts)][::-1]
    places: list[Sequenced | None] = [None] * count
    while True:
        for place in range(len(places)):
            if places[place] is None and waiting:
                places[place] = waiting.pop()
                llama_cpp.llama_memory_seq_rm(memory, place, -1, -1)
        if not waiting:
            _close_gaps(memory, places)
        wanted = _fill(batch, places)
        if not batch.n_tokens:
            return
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise ToolkitError(f"llama.cpp could not evaluate {batch.n_tokens} tokens (status {status})")
        for place, index in wanted:
            one = places[place]
            assert one is not None
            row = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, index), shape=(width,))
            token = int(row.argmax())
            ended = bool(llama_cpp.llama_vocab_is_eog(vocabulary, token))
            if not ended:
                one.answer.append(token)
            if ended or len(one.answer) >= tokens or over(one.number, one.answer):
                places[place] = None
                yield one.number, one.answer, ended


def _close_gaps(memory: Any, places: list[Sequenced | None]) -> None:
    """Move the last sequences into places that are free, and forget these at the end."""
    import llama_cpp

    for place in range(len(places)):
        while places and places[-1] is None:
            places.pop()
        if place < len(places) and places[place] is None:
            last = len(places) - 1
            places[place] = places.pop()
            llama_cpp.llama_memory_seq_rm(memory, place, -1, -1)
            llama_cpp.llama_memory_seq_cp(memory, last, place, -1, -1)
            llama_cpp.llama_memory_seq_rm(memory, last, -1, -1)


def _fill(batch: Any, places: Sequence[Sequenced | None]) -> list[tuple[int, int]]:
    """Put the next token of each answer into a batch, or ids of its prompt; return (place, index) of those with logits.

    The places are in order. A prompt that does not fit waits for the next pass with its rest; answers have room.
    """
    wanted: list[tuple[int, int]] = []
    index, room = 0, PASS - sum(bool(one and one.answer) for one in places)

    def put(place: int, token: int, position: int, last: bool) -> None:
        nonlocal index
        batch.token[index], batch.pos[index], batch.logits[index] = token, position, last
        batch.n_seq_id[index], batch.seq_id[index][0] = 1, place
        if last:
            wanted.append((place, index))
        index += 1

    for place, one in enumerate(places):
        if one is not None and one.answer:
            put(place, one.answer[-1], len(one.prompt) + len(one.answer) - 1, True)
        elif one is not None:
            end = min(len(one.prompt), one.read + room)
            for position in range(one.read, end):
                put(place, one.prompt[position], position, position == len(one.prompt) - 1)
            room, one.read = room - (end - one.read), end
    batch.n_tokens = index
    return wanted
