"""A small model of every family through all stages, with a prompt that fits it: prepared, trained, in Ollama, asked."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_toolkit
from tests.support import families, models, vocabularies
from tests.support.ollama_server import OllamaServer
from toolkit.core import config_file
from toolkit.model.families import family_of

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

Vocabulary = Callable[[Path], Any]


def sentencepiece(kind: str) -> Vocabulary:
    return lambda folder: vocabularies.small_sentencepiece(folder, kind)


def byte_level(pre: str, *controls: str) -> Vocabulary:
    return lambda folder: models.save_tokenizer(folder, pre, controls=controls)


LLAMA3 = ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
PHI = ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
INST = {"preset": "custom", "user_turn": "[INST] {instruction}\n\n{input} [/INST]", "suffix": " ", "stops": ["[INST]"]}
TURNS = {
    "preset": "custom", "prefix": "<|system|>{instruction}<|end|>", "suffix": "<|end|>", "eos": "<|end|>",
    "user_turn": "<|user|>{input}<|end|><|assistant|>",
}  # fmt: skip
PLAIN = {"preset": "alpaca-no-input"}
THINKS_NOT = {"preset": "chatml", "thinking": "off"}
# Family → its prompt, and the vocabulary that can write it where its usual small one cannot.
WAYS: dict[str, tuple[dict[str, Any], Vocabulary | None]] = {
    "llama": ({"preset": "llama3"}, byte_level("llama-bpe", *LLAMA3)),
    "mistral": (INST, sentencepiece("mistral")),
    "nemo": (INST, byte_level("tekken", "[INST]", "[/INST]")),
    "phi3": (PLAIN, None),
    "phi3.5": (PLAIN, None),
    "phi4mini": (TURNS, byte_level("gpt-4o", *PHI)),
    "phi4": ({"preset": "chatml"}, byte_level("dbrx", "<|im_start|>", "<|im_end|>")),
    "gemma2": ({"preset": "gemma"}, sentencepiece("gemma-it")),
    "gemma3": ({"preset": "gemma"}, sentencepiece("gemma-it")),
    "smollm3": (THINKS_NOT, families.save_thinking_llama),
    "granite": (PLAIN, None),
    "granite4": (PLAIN, None),
    "olmo2": (PLAIN, None),
    "olmo3": (PLAIN, None),
    "qwen2.5": ({"preset": "chatml"}, None),
    "qwen3": (THINKS_NOT, families.save_thinking),
    "qwen3.5": (THINKS_NOT, lambda folder: families.save_thinking(folder, "qwen35")),
    "qwen3.5 that sees": ({"preset": "chatml"}, None),
    "ministral3": (INST, byte_level("tekken", "[INST]", "[/INST]")),
    "gemma3 that sees": ({"preset": "gemma"}, sentencepiece("gemma-it")),
}
COVERING = ("gemma3", "olmo3", "phi4mini", "qwen3.5", "smollm3")  # the others have their turn in make exhaustive
TARGETS = {"phi": ["qkv_proj", "o_proj"], "granite4": ["q_proj", "output_linear"]}
QUESTION = "Is water 7 good?"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    with (folder / "data.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        rows.writerows([f"Is water {number} good?", f"Yes, drink {number} glasses."] for number in range(24))
    return folder


def test_every_family_has_its_way() -> None:
    assert {*families.FAMILIES} <= {*WAYS}


@pytest.mark.parametrize(
    "family", [pytest.param(name, marks=() if name in COVERING else pytest.mark.exhaustive) for name in WAYS]
)
def test_all_stages(family: str, place: Path, server: OllamaServer) -> None:
    prompt, vocabulary = WAYS[family]
    name = family.replace(" ", "-").replace(".", "-")
    base = families.save(place / name, family, vocabulary=vocabulary)
    targets = next((found for start, found in TARGETS.items() if family.startswith(start)), ["q_proj", "down_proj"])
    values: dict[str, dict[str, Any]] = {
        "run": {"name": f"run-{name}"},
        "data": {"source": "data.csv"},
        "prompt": {"instruction": "Be kind", **prompt},
        "model": {"base": name, "load_in_4bit": False},
        "train": {
            "backend": "peft", "max_steps": 2, "max_length": 320, "gradient_checkpointing": False,
            "target_modules": targets,
        },
        "export": {"quantizations": ["F16", "Q8_0"], "default": "Q8_0"},
        "validate": {"rows": 4, "answer_tokens": 8},
        "ollama": {"num_predict": 8},
    }  # fmt: skip
    (place / "toolkit.toml").write_text(config_file.starter(values))
    done = call_toolkit("run", "--json", cwd=place, OLLAMA_HOST=server.url)
    assert done.code == 0, done.err
    report = json.loads((place / "exports" / f"run-{name}" / "report.json").read_text())["quantizations"]
    assert all(found["passed"] and not found["unequal_prompts"] for found in report.values())
    tags = done.json["stages"]["register"]["tags"]
    count = done.json["stages"]["prepare"]["test"]
    assert all(tag["prompts_verified"] == tag["prompts_counted"] == count for tag in tags.values())
    shown = server.run("show", f"run-{name}").stdout
    assert family_of(base)[0].architecture in shown
    asked = call_toolkit("ask", QUESTION, "--json", cwd=place, OLLAMA_HOST=server.url)
    assert asked.code == 0 and asked.json["through"] == "ollama", asked.err
