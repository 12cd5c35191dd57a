"""Several token sequences in one pass of llama.cpp: a file larger than memory is then read once for all of them."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core.errors import ToolkitError
from toolkit.llamacpp.remote import beside_file

TOKENS = 2048  # of a pass: 8B takes 2 GB beside its file for so many
SEQUENCES = 64  # llama.cpp's own limit is no lower

Sequenced = tuple[Sequence[int], int]


def groups(sequences: Sequence[Sequenced], most: int = SEQUENCES) -> list[list[Sequenced]]:
    """Divide (ids, first) pairs into passes of at most 2,048 tokens, or of one longer sequence; the order stays.

    A pass has at most `most` sequences.
    """
    found: list[list[Sequenced]] = []
    for one in sequences:
        last = found[-1] if found else None
        if last and len(last) < most and sum(len(ids) for ids, _ in last) + len(one[0]) <= TOKENS:
            last.append(one)
        else:
            found.append([one])
    return found


@beside_file
def logits_together(llm: Any, sequences: Sequence[Sequenced]) -> list[npt.NDArray[np.float32]]:
    """Return for each (ids, first) the logits after each of `ids[first:]`, shape (len(ids) - first, vocabulary).

    The sequences do not see each other. Raises ToolkitError if llama.cpp has no memory for them.
    """
    import llama_cpp

    count = sum(len(ids) for ids, _ in sequences)
    params = type(llm.context_params).from_buffer_copy(llm.context_params)
    params.n_ctx = params.n_batch = params.n_ubatch = count
    params.n_seq_max, params.kv_unified = len(sequences), True
    context = llama_cpp.llama_init_from_model(llm.model, params)
    if not context:
        raise ToolkitError(f"llama.cpp has no memory for {count:,} tokens in one pass")
    batch = llama_cpp.llama_batch_init(count, 0, 1)
    try:
        batch.n_tokens = count
        index = 0
        for number, (ids, first) in enumerate(sequences):
            for position, token in enumerate(ids):
                batch.token[index], batch.pos[index] = token, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, number
                batch.logits[index] = position >= first
                index += 1
        status = llama_cpp.llama_decode(context, batch)
        if status != 0:
            raise ToolkitError(f"llama.cpp could not evaluate {count:,} tokens in one pass (status {status})")
        ends = list(accumulate(len(ids) - first for ids, first in sequences))
        pointer = llama_cpp.llama_get_logits(context)
        found = np.ctypeslib.as_array(pointer, shape=(ends[-1], llm.n_vocab())).copy()
        return np.split(found, ends[:-1])
    finally:
        llama_cpp.llama_batch_free(batch)
        llama_cpp.llama_free(context)
