"""An evaluation's cost per token of an answer beside llama.cpp's own generation of one answer at a time.

    python benchmarks/evaluate.py RUN [--questions 16] [--tokens 128]

RUN is the folder of a run with GGUF files. Both answer the same held-out questions from the same file; nothing ends an
answer early. Printed: where each system computes, milliseconds a token of each, their ratio (to be at most 1.2), and
for base and trained model in transformers the milliseconds a token alone.
"""

import argparse
import time
from pathlib import Path

from one_at_a_time import generation

from toolkit import llamacpp
from toolkit.core.config_file import load_config
from toolkit.core.run_folder import folder_of
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.held_out import read_questions, room
from toolkit.model import base_choice


def main() -> None:
    """Measure each file of a run, then base and trained model."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--questions", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=128)
    given = parser.parse_args()
    config = load_config(given.run)
    base, shards = base_choice.choose_base(config.model, config.export)
    bench = Bench(config, folder_of(config), base, shards is None)
    _, questions = read_questions(bench.folder, bench.form, bench.tokenizer, given.questions)
    prompts, window = [one.prompt for one in questions], room(questions, given.tokens)
    print(f"{len(prompts)} questions, at most {given.tokens} tokens each; milliseconds a token")
    for system in bench.systems:
        if bench.skipped(system):
            continue
        with bench.opened(system, window) as asked:
            device = bench.device(system)
            next(iter(asked.answers(prompts[:1], 4, ())))  # what is computed once
            started = time.perf_counter()
            count = sum(answer.tokens for answer in asked.answers(prompts, given.tokens, ()))
            ours = 1000 * (time.perf_counter() - started) / count
        if system.path is None:
            print(f"{system.name:8} {ours:7.2f}  ({count:,} tokens), {device}", flush=True)
            continue
        with llamacpp.opened(system.path, window) as llm:
            some = [llamacpp.tokenize(llm, prompt) for prompt in prompts[: max(2, len(prompts) // 4)]]
            generation(llm, some[:1], 4)
            spent, alone = generation(llm, some, given.tokens)
        theirs = 1000 * spent / alone
        print(
            f"{system.name:8} {ours:7.2f}  ({count:,} tokens), llama.cpp alone {theirs:7.2f}, "
            f"ratio {ours / theirs:.2f}, {device}",
            flush=True,
        )


if __name__ == "__main__":
    main()
