"""Hold the estimate of training's memory against the train room itself, run in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.places import REPOSITORY
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.model import memory
from toolkit.model.model_config import model_config

pytestmark = pytest.mark.slow

LENGTH = 512
RECORDS = 8
TRAIN = """
import json, sys
from pathlib import Path
from toolkit.model.base import Base
from toolkit.core.config_file import build
from toolkit.core.run_folder import folder_of
from toolkit.train import train
config = build(json.loads(sys.argv[1]))
train(config, folder_of(config), Base("random", Path(config.model.base)), restart=True)
# not ru_maxrss, which begins at the peak of the process that started this one
print(next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024)
"""


def made(path: Path, hidden: int, layers: int, vocabulary: int) -> Path:
    """Make a random Llama whose tokens are bytes, and records of exactly LENGTH tokens; return the folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from toolkit.prompt.format import prompt_format
    from toolkit.prompt.renderings import prompt_text
    from toolkit.prompt.tokenizer import load_tokenizer

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<end>", *letters, *(f"<unused{index}>" for index in range(vocabulary - 1 - len(letters)))]
    encoder = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    saved = PreTrainedTokenizerFast(tokenizer_object=encoder, eos_token="<end>", pad_token="<end>")
    saved.save_pretrained(path / "base")
    torch.manual_seed(0)
    sizes = {"hidden_size": hidden, "intermediate_size": 3 * hidden, "num_hidden_layers": layers}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    ends = {"vocab_size": len(names), "eos_token_id": 0, "pad_token_id": 0}
    LlamaForCausalLM(LlamaConfig(**sizes, **heads, **ends)).save_pretrained(path / "base")

    form, known = prompt_format(build({}).prompt), load_tokenizer(path / "base")
    prompt = prompt_text(form, "What?", "Explain:")
    output = "x" * (LENGTH - 1 - len(known.prompt_ids(prompt)))
    record = {"instruction": "Explain:", "input": "What?", "truncated": False, "output": output}
    assert len(known.record_ids(prompt, output)[0]) == LENGTH
    (path / "run" / "data").mkdir(parents=True)
    for side, count in (("train", RECORDS), ("val", 1)):
        lines = "".join(json.dumps({**record, "row": row}) + "\n" for row in range(count))
        (path / "run" / "data" / f"{side}.jsonl").write_text(lines, encoding="utf-8")
    return path


def measured(place: Path, records: int, precision: str, checkpointing: bool) -> tuple[int, Config]:
    """Take one step in a process of its own; return the most memory it ever held, in bytes, and its config."""
    train = {
        "max_length": LENGTH,
        "batch_size": records,
        "gradient_accumulation_steps": 1,
        "max_steps": 1,
        "precision": precision,
    }
    train |= {"gradient_checkpointing": checkpointing, "optim": "adamw_torch", "backend": "peft"}
    settings = {
        "run": {"name": "run", "folder": str(place)},
        "model": {"base": str(place / "base")},
        "train": train,
        "validate": {"questions": []},  # an answer takes less memory than a step
    }
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, "-c", TRAIN, json.dumps(settings)]
    answer = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-2000:]
    return int(answer.stdout.split()[-1]), build(settings)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a narrow model: many activations for little arithmetic, which a CPU without bf16 does very slowly in it."""
    return made(tmp_path_factory.mktemp("measured"), hidden=128, layers=8, vocabulary=2048)


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> int:
    """Measure what is resident when hardly any model is there: machines differ by hundreds of megabytes."""
    taken, _ = measured(made(tmp_path_factory.mktemp("libraries"), 32, 1, 512), 1, "f32", False)
    print(f"libraries: {memory.LIBRARIES / 1e6:.0f} MB computed, {taken / 1e6:.0f} measured")
    return taken


@pytest.mark.parametrize(
    ("precision", "checkpointing"),
    [
        ("f32", False),
        ("bf16", True),
        pytest.param("f32", True, marks=pytest.mark.exhaustive),
        pytest.param("bf16", False, marks=pytest.mark.exhaustive),
    ],
)
def test_training_takes_the_memory_that_was_computed(
    place: Path, libraries: int, precision: str, checkpointing: bool
) -> None:
    taken, config = measured(place, RECORDS, precision, checkpointing)
    shape = model_config(place / "base")
    assert shape is not None
    computed = memory.total(memory.training_cpu(shape, config.train, bf16=precision == "bf16"))
    print(f"{precision}, checkpointing {checkpointing}: {computed / 1e6:.0f} MB computed, {taken / 1e6:.0f} measured")
    assert 0.7 < computed / taken < 1.4
    # The libraries must not hide an error in what the formula is about.
    own = (computed - memory.LIBRARIES) / (taken - libraries)
    assert 0.6 < own < 1.5
