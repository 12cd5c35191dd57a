"""The whole job for a model of Llama-3.1-8B's shape, each stage a process of its own: seconds, and what it printed.

    python benchmarks/whole_run.py --work DIR [--layers 32] [--data CSV] [--steps 8] [--register]

The base has random weights (bfloat16) and Llama-3's real vocabulary, from the package llama-models. With a CUDA GPU it
is trained in 4 bits. `evaluate` asks 50 questions of each of five systems, and the sample exam. `--register` puts the
model into the Ollama server that OLLAMA_HOST names, and asks it. A finished run's folder stays in DIR for
`benchmarks/evaluate.py`. 32 layers need 55 GB of disk.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

from wide_model import make_base

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))
SETTINGS = """[run]
name = "whole"
folder = "{work}"
[data]
source = "{data}"
[model]
base = "{work}/base"
load_in_4bit = {four_bit}
[train]
max_steps = {steps}
max_length = 1024
max_eval_samples = 16
[export]
quantizations = ["F16", "Q8_0", "Q4_K_M"]
[validate]
rows = 10
max_kl = {{ F16 = 1000.0, Q8_0 = 1000.0, K = 1000.0 }}  # no rounding leaves much of random weights
[evaluate]
answer_tokens = 128
exam = "{exam}"
[ollama]
name = "whole"
"""


def main() -> None:
    """Make the base, run the stages, print the last lines and the seconds of each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True, help="a folder that does not exist")
    parser.add_argument("--layers", type=int, default=32)
    parser.add_argument("--data", type=Path, default=REPOSITORY / "data/raw/medquad-2479.csv")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--register", action="store_true")
    given = parser.parse_args()
    work = given.work.resolve()
    if work.exists():
        parser.error(f"{work} exists already")
    work.mkdir(parents=True)
    settings = prepared(work, given)
    stages = ["prepare", "train", "export", "validate", "evaluate"]
    for stage in [*stages, *(["register"] if given.register else [])]:
        timed([stage], settings)
    if given.register:
        timed(["ask", "How to prevent Noonan syndrome?"], settings)


def prepared(work: Path, given: argparse.Namespace) -> Path:
    """Make the base and write the settings; return their file."""
    import torch

    from tests.support.vocabularies import make_llama3

    make_base(work / "base", given.layers)
    make_llama3(work / "base")
    settings = work / "whole.toml"
    text = SETTINGS.format(
        work=work, data=given.data.resolve(), steps=given.steps, exam=REPOSITORY / "data" / "exam.jsonl",
        four_bit="true" if torch.cuda.is_available() else "false",
    )  # fmt: skip
    settings.write_text(text, encoding="utf-8")
    return settings


def timed(arguments: list[str], settings: Path) -> None:
    """Run one verb and print what it said last; end this process where it fails."""
    command = [sys.executable, "-m", "toolkit", *arguments, "-c", str(settings)]
    started = time.perf_counter()
    done = subprocess.run(command, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    seconds = time.perf_counter() - started
    said = done.stdout.strip().splitlines()[-25:]
    print(f"--- {arguments[0]}: {seconds:.0f} s", *said, sep="\n", flush=True)
    if done.returncode:
        sys.exit(f"{arguments[0]} failed ({done.returncode})")


if __name__ == "__main__":
    main()
