"""llama.cpp's own generation, one answer at a time, in whatever process has the file open; used by benchmarks."""

import time
from collections.abc import Sequence
from typing import Any

from toolkit.llamacpp.remote import beside_file


@beside_file
def generation(llm: Any, prompts: Sequence[Sequence[int]], tokens: int) -> tuple[float, int]:
    """Return the seconds that answers to tokenized prompts take, and the number of their tokens; nothing ends one."""
    spent, count = 0.0, 0
    for ids in prompts:
        llm.reset()  # it would not read again what the last prompt began with
        started = time.perf_counter()
        count += sum(1 for _ in zip(llm.generate(ids, temp=0.0, top_k=1), range(tokens), strict=False))
        spent += time.perf_counter() - started
    return spent, count
