"""Hold the estimate of training's memory against the train room itself, run in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from toolkit import memory
from toolkit import shape as shapes
from toolkit.toml import build

ROOT = Path(__file__).parents[2]
LENGTH = 1024
TRAIN = """
import json, resource, sys
from pathlib import Path
from toolkit.base import Base
from toolkit.toml import build
from toolkit.run import folder_of
from toolkit.train import train
config = build(json.loads(sys.argv[1]))
train(config, folder_of(config), Base("random", Path(config.model.base)))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make a random Llama of 41 M parameters whose tokens are bytes, and records of exactly LENGTH tokens."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from toolkit import tokens
    from toolkit.prompt import prompt_format, prompt_text

    path = tmp_path_factory.mktemp("measured")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    names = ["<end>", *letters, *(f"<unused{index}>" for index in range(8192 - 1 - len(letters)))]
    encoder = Tokenizer(models.BPE(vocab={name: index for index, name in enumerate(names)}, merges=[]))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoder.decoder = decoders.ByteLevel()
    saved = PreTrainedTokenizerFast(tokenizer_object=encoder, eos_token="<end>", pad_token="<end>")
    saved.save_pretrained(path / "base")
    torch.manual_seed(0)
    wide = {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 8, "vocab_size": len(names)}
    heads = {"num_attention_heads": 8, "num_key_value_heads": 4}
    LlamaForCausalLM(LlamaConfig(**wide, **heads, eos_token_id=0, pad_token_id=0)).save_pretrained(path / "base")

    form, vocabulary = prompt_format(build({}).prompt), tokens.load(path / "base")
    prompt = prompt_text(form, "What?", "Explain:")
    record = {"instruction": "Explain:", "input": "What?", "truncated": False}
    record["output"] = "x" * (LENGTH - 1 - len(vocabulary.prompt_ids(prompt)))
    assert len(vocabulary.record_ids(prompt, record["output"])[0]) == LENGTH
    (path / "run" / "data").mkdir(parents=True)
    for side, count in (("train", 8), ("val", 1)):
        lines = "".join(json.dumps({**record, "row": row}) + "\n" for row in range(count))
        (path / "run" / "data" / f"{side}.jsonl").write_text(lines, encoding="utf-8")
    return path


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "checkpointing"), [("f32", False), ("f32", True), ("bf16", False), ("bf16", True)]
)
def test_training_takes_the_memory_that_was_computed(place: Path, precision: str, checkpointing: bool) -> None:
    train = {"max_length": LENGTH, "batch_size": 2, "accumulation": 1, "steps": 2, "precision": precision}
    train |= {"gradient_checkpointing": checkpointing, "optimizer": "adamw_torch", "backend": "peft"}
    run = {"name": "run", "folder": str(place)}
    config = build({"run": run, "model": {"base": str(place / "base")}, "train": train})
    shape = shapes.from_folder(place / "base")
    assert shape is not None
    parts = memory.training_cpu(shape, config.train, bf16=precision == "bf16")
    settings = json.dumps({"run": run, "model": {"base": str(place / "base")}, "train": train})
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": ""}
    answer = subprocess.run([sys.executable, "-c", TRAIN, settings], capture_output=True, text=True, env=environment)
    assert answer.returncode == 0, answer.stderr[-2000:]
    measured = int(answer.stdout.split()[-1])
    computed = memory.total(parts)
    print(
        f"{precision}, checkpointing {checkpointing}: {computed / 1e6:.0f} MB computed, {measured / 1e6:.0f} measured"
    )
    assert 0.7 < computed / measured < 1.4
    # The libraries must not hide an error in what the formula is about.
    own = (computed - memory.LIBRARIES) / (measured - memory.LIBRARIES)
    assert 0.6 < own < 1.5
