"""An exam's cost in a GGUF beside llama.cpp's own evaluation of the same prompts, one after the other.

    python benchmarks/choice.py FILE.gguf [--exam data/exam.jsonl] [--repeats 5]

Printed: seconds of both for all questions, the best of the repeats, which alternate, and their ratio.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

from toolkit import llamacpp
from toolkit.evaluate.choice import ask_items, load_choice
from toolkit.evaluate.llamacpp_system import LlamaCppSystem
from toolkit.evaluate.lm import AskedLM
from toolkit.evaluate.systems import Asked
from toolkit.llamacpp.vocabulary import open_vocabulary
from toolkit.prompt.tokenizer import Tokenizer


def main() -> None:
    """Measure one file."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--exam", type=Path, default=Path("data/exam.jsonl"))
    parser.add_argument("--repeats", type=int, default=5)
    given = parser.parse_args()
    tasks = load_choice([], given.exam, 0, None)
    with open_vocabulary(given.file) as vocabulary:
        bos, eos = vocabulary.bos if vocabulary.adds_bos else None, vocabulary.eos or 0
    with llamacpp.opened(given.file, 2048) as llm:
        asked: Asked = LlamaCppSystem(llm, given.file, Tokenizer(None, bos, eos, ""), 2048)
        lm = AskedLM(asked)
        prompts = [lm.tok_encode(item[0].args[0]) for item in tasks[0].requests]

        def ours() -> None:
            assert len(list(ask_items(asked, tasks))) == len(prompts)

        def plain() -> None:
            for ids in prompts:
                llamacpp.logits(llm, ids, len(ids) - 1)

        seconds: dict[Callable[[], None], float] = {}
        for _ in range(given.repeats):
            for way in (ours, plain):
                started = time.perf_counter()
                way()
                seconds[way] = min(seconds.get(way, 1e9), time.perf_counter() - started)
    count = sum(map(len, prompts))
    print(f"{len(prompts)} questions, {count:,} tokens of prompts: {seconds[ours]:.2f} s")
    print(f"llama.cpp's prompts alone: {seconds[plain]:.2f} s, ratio {seconds[ours] / seconds[plain]:.2f}")


if __name__ == "__main__":
    main()
