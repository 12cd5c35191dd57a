"""Every prompt preset through all stages on a small model: prepare, train, export, validate, register, ask."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import call_toolkit
from tests.support import families
from tests.support.models import save_model
from tests.support.ollama_server import OllamaServer
from tests.support.vocabularies import small_sentencepiece
from toolkit import llamacpp
from toolkit.core import config_file
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import load_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

CONTROLS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PRESETS: dict[str, dict[str, Any]] = {
    "chatml": {"preset": "chatml"},
    "closed": {"preset": "chatml", "thinking": "off"},
    "thoughts": {"preset": "chatml", "thinking": "keep"},
    "gemma": {"preset": "gemma"},
    "llama3": {"preset": "llama3", "instruction": ""},
    "alpaca-no-input": {"preset": "alpaca-no-input", "instruction": ""},
    "custom": {
        "preset": "custom",
        "prefix": "<|im_start|>{instruction}\n",
        "user_turn": "Q: {input}\nA:",
        "suffix": "\n",
        "eos": "<|eot_id|>",
        "stops": ["Q:"],
    },
}

BASES = {"gemma": "gemma-base", "closed": "thinking-base", "thoughts": "thinking-base"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    save_model(folder / "base", controls=CONTROLS, num_hidden_layers=1)
    families.save(
        folder / "gemma-base", "gemma3", vocabulary=lambda path: small_sentencepiece(path, "gemma-it"),
        num_hidden_layers=1,
    )  # fmt: skip
    families.save(folder / "thinking-base", "qwen3", vocabulary=families.save_thinking, num_hidden_layers=1)
    _write(folder / "data.csv", "")
    _write(folder / "thoughts.csv", "<think>\nHow many?\n</think>\n\n")
    return folder


def _write(path: Path, thoughts: str) -> None:
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["question", "answer"])
        for number in range(40):
            mark = ["", " <|im_end|>", " <|eot_id|> <end_of_turn> ### Response:"][number % 3]
            rows.writerow([f"Is water {number} good{mark} ?", f"{thoughts}Yes, drink {number} glasses{mark}."])


@pytest.mark.parametrize("name", PRESETS)
def test_all_stages(name: str, place: Path, server: OllamaServer) -> None:
    values = {
        "run": {"name": name},
        "data": {"source": "thoughts.csv" if name == "thoughts" else "data.csv"},
        "prompt": PRESETS[name],
        "model": {"base": BASES.get(name, "base"), "load_in_4bit": False},
        "train": {"backend": "peft", "max_steps": 2, "max_length": 400, "gradient_checkpointing": False},
        "export": {"quantizations": ["F16"], "default": "F16"},
        "validate": {"rows": 4, "answer_tokens": 8},
        "ollama": {"num_predict": 16},
    }
    (place / "toolkit.toml").write_text(config_file.starter(values))
    done = call_toolkit("run", "--json", cwd=place, OLLAMA_HOST=server.url)
    assert done.code == 0, done.err
    config = config_file.load_config(place / "toolkit.toml")
    form = prompt_format(config.prompt)
    run = place / "exports" / name
    tokenizer = load_tokenizer(run / "adapter", form)
    eos = form.eos or "<|end_of_text|>"
    assert tokenizer.eos_text == eos
    assert json.loads((run / "adapter" / "tokenizer_config.json").read_text())["eos_token"] == eos
    report = json.loads((run / "report.json").read_text())["quantizations"]["F16"]
    assert report["passed"] and report["unequal_prompts"] == report["unequal_records"] == 0
    with llamacpp.opened(run / "gguf" / f"{name}-F16.gguf", 512) as llm:
        assert llm.token_eos() == tokenizer.eos
        prompt = render(form, f"Is {eos} water good?", "s")
        assert llamacpp.tokenize(llm, prompt) == tokenizer.prompt_ids(prompt)
        assert llamacpp.served(llm, prompt.text) != tokenizer.prompt_ids(prompt)  # a server takes it for the token
    tag = done.json["stages"]["register"]["tags"]["latest"]
    assert tag["prompts_verified"] == tag["prompts_counted"] == done.json["stages"]["prepare"]["test"]
    assert tag["control_like_prompts"] > 0 and tag["greedy"][0]["ollama"]
    answered = call_toolkit("ask", "Is water <|eot_id|> good?", "--json", cwd=place, OLLAMA_HOST=server.url)
    assert answered.code == 0 and answered.json["through"] == "ollama"
    merged = call_toolkit("export", "--format", "safetensors", "--output", str(place / f"{name}-out"), cwd=place)
    assert merged.code == 0, merged.err
    assert load_tokenizer(place / f"{name}-out" / f"{name}-merged").eos == tokenizer.eos


def test_a_base_without_the_tokens_is_refused_before_anything_is_written(place: Path, tmp_path: Path) -> None:
    save_model(tmp_path / "base", num_hidden_layers=1)
    values: dict[str, dict[str, Any]] = {
        "data": {"source": str(place / "data.csv")},
        "prompt": {"preset": "chatml"},
        "model": {"base": "base", "load_in_4bit": False},
    }
    (tmp_path / "toolkit.toml").write_text(config_file.starter(values))
    done = call_toolkit("prepare", cwd=tmp_path)
    assert done.code == 2 and "<|im_start|>" in done.err and 'prompt.preset = "alpaca"' in done.err
