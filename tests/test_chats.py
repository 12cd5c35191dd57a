"""Chats through all stages: from a file of messages to an answer to the last of several turns in a real Ollama."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.conftest import call_toolkit
from tests.support import families
from tests.support.ollama_server import OllamaServer, library
from tests.support.outside import smollm
from tests.support.places import REPOSITORY
from toolkit.core import config_file
from toolkit.core.run_folder import RunFolder
from toolkit.formats.gguf_reader import open_gguf
from toolkit.model.base import resolve_training
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render_record
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.train.examples import load_examples

SAMPLE = REPOSITORY / "data/chats.jsonl"
# Family → its prompt: with a system message of its own, without one, and without control tokens.
WAYS: dict[str, tuple[str, dict[str, Any]]] = {
    "chatml": ("qwen2.5", {"preset": "chatml", "instruction": "Be kind"}),
    "alpaca": ("llama", {"preset": "alpaca", "instruction": "Be kind"}),
}


@pytest.mark.slow
@pytest.mark.ollama
@pytest.mark.parametrize("way", WAYS)
def test_a_file_of_chats_becomes_a_model_that_answers_the_last_of_several_turns(
    way: str, tmp_path: Path, server: OllamaServer
) -> None:
    family, prompt = WAYS[way]
    base = families.save(tmp_path / "base", family, max_position_embeddings=4096)
    values: dict[str, dict[str, Any]] = {
        "run": {"name": f"chat-{way}"},
        "data": {"source": str(SAMPLE)},
        "prompt": prompt,
        "model": {"base": "base", "load_in_4bit": False},
        "train": {"backend": "peft", "max_steps": 2, "max_length": 2000, "gradient_checkpointing": False},
        "export": {"quantizations": ["F16"], "default": "F16", "imatrix": False},
        "validate": {"rows": 2, "answer_tokens": 8},
        "ollama": {"num_predict": 16, "num_ctx": 4096},
    }
    (tmp_path / "toolkit.toml").write_text(config_file.starter(values))
    done = call_toolkit("run", "--json", cwd=tmp_path, OLLAMA_HOST=server.url)
    assert done.code == 0, done.err
    assert "answers learned, each from ▶ to ◀" in done.err
    stages = done.json["stages"]
    assert stages["prepare"]["chats"] == stages["prepare"]["kept"] == 24
    tag = stages["register"]["tags"]["latest"]
    held_out = stages["prepare"]["test"]
    assert tag["prompts_of_several_turns"] == held_out > 0
    assert tag["prompts_verified"] == tag["prompts_counted"] == 2 * held_out

    form = prompt_format(config_file.load_config(tmp_path / "toolkit.toml").prompt)
    run = tmp_path / "exports" / f"chat-{way}"
    tokenizer = load_tokenizer(base, form)
    template = str(open_gguf(run / "gguf" / f"chat-{way}-F16.gguf").metadata["tokenizer.chat_template"])
    for line in (run / "data/test.jsonl").read_text().splitlines():
        record = json.loads(line)
        messages = said_before_the_answer(record)
        trained = render_record(form, record, tokenizer.eos_text)
        assert in_jinja(template, messages, tokenizer) == tokenizer.bos_text + trained.text
        assert on_the_server(server, f"chat-{way}", messages) == trained.text
    assert record["history"]
    answered = library(server.url).chat(f"chat-{way}", messages=messages, options={"temperature": 0})
    assert answered["message"]["content"] and answered["done_reason"] in ("stop", "length")
    assert answered["prompt_eval_count"] == len(tokenizer.prompt_ids(trained))


def said_before_the_answer(record: dict[str, Any]) -> list[dict[str, str]]:
    messages = [{"role": "system", "content": record["instruction"]}]
    for question, answer in record["history"]:
        messages += [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [*messages, {"role": "user", "content": record["input"]}]


def in_jinja(template: str, messages: list[dict[str, str]], tokenizer: Tokenizer) -> str:
    """What transformers makes of messages by the template in a GGUF file."""
    from transformers.utils.chat_template_utils import render_jinja_template

    tokens = {"bos_token": tokenizer.bos_text, "eos_token": tokenizer.eos_text}
    rendered, _ = render_jinja_template([messages], chat_template=template, add_generation_prompt=True, **tokens)
    return str(rendered[0])


def on_the_server(server: OllamaServer, model: str, messages: list[dict[str, str]]) -> str:
    """What Ollama's /api/chat would give the model to read."""
    body = {"model": model, "messages": messages, "stream": False, "_debug_render_only": True}
    answer = httpx.post(f"{server.url}/api/chat", json=body, timeout=60, trust_env=False).raise_for_status()
    return str(answer.json()["_debug_info"]["rendered_template"])


@pytest.mark.slow
def test_the_example_is_prepared_turn_by_turn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its data are read with the base's own vocabulary, and all of it fits."""
    smollm()
    done = call_toolkit(
        "prepare", "-c", str(REPOSITORY / "examples/chat.toml"), "--json", "--set", f"data.source={SAMPLE}",
        "--set", f"run.folder={tmp_path}", cwd=tmp_path,
    )  # fmt: skip
    assert done.code == 0, done.err
    figures = done.json
    assert (figures["rows"], figures["kept"], figures["chats"], figures["turns"]) == (24, 24, 24, 59)
    assert figures["truncated"] == figures["rejected"] == 0 and "chat ← messages" in done.err
    lines = [json.loads(line) for line in (tmp_path / "chat/data/train.jsonl").read_text().splitlines()]
    rows = [json.loads(line)["messages"] for line in SAMPLE.read_text().splitlines()]
    for line in lines:
        said = [message["content"] for message in rows[line["row"] - 1] if message["role"] != "system"]
        assert said == [*(text for turn in line["history"] for text in turn), line["input"], line["output"]]
        first = rows[line["row"] - 1][0]
        own = first["content"] if first["role"] == "system" else "Answer in a few plain sentences."
        assert line["instruction"] == own
    config = config_file.load_config(REPOSITORY / "examples/chat.toml")
    form = prompt_format(config.prompt)
    tokenizer = load_tokenizer(resolve_training(config.model, weights=False).folder, form)
    load_examples(RunFolder(tmp_path / "chat", "chat"), tokenizer, form, config.train)
    shown = re.findall(
        r"```text\n(.*?)```", (REPOSITORY / "docs/guide/chats.md").read_text(encoding="utf-8"), re.DOTALL
    )
    assert len(shown) == 1 and capsys.readouterr().err.startswith(shown[0])
