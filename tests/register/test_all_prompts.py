"""All 2,479 real prompts through the whole chain on a real server, with real vocabularies and a model of one layer."""

import time
from pathlib import Path

import pytest
import torch

from tests.support import outside, vocabularies
from tests.support.ollama_server import OllamaServer, library
from tests.support.prompts import FORMATS
from tests.support.rows import clean
from toolkit.core.input_settings import DataSettings
from toolkit.core.output_settings import OllamaSettings
from toolkit.export import export
from toolkit.ollama import server
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_table
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text
from toolkit.prompt.templates import chat_template, go_template
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.register import greedy, prompt_parity

pytestmark = [pytest.mark.slow, pytest.mark.ollama]


def save_model(folder: Path, name: str) -> Path:
    """Save one layer of random weights over a real vocabulary."""
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    getattr(vocabularies, name)(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=4096, initializer_range=0.1, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.to(torch.float16).save_pretrained(folder)
    return folder


# The server reads every eighth; all take a minute and more.
@pytest.mark.parametrize(
    ("preset", "vocabulary", "step"),
    [
        ("alpaca", "llama3", 8),
        pytest.param("alpaca", "llama3", 1, marks=pytest.mark.exhaustive),
        pytest.param("chatml", "smollm2", 1, marks=pytest.mark.exhaustive),
    ],
)
def test_every_real_prompt_is_the_same_everywhere(
    ollama: OllamaServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    preset: str,
    vocabulary: str,
    step: int,
) -> None:
    from transformers.utils.chat_template_utils import render_jinja_template

    table = read_table(outside.medquad(), wanted_names(DataSettings()))
    records, rejected = clean(table, find_columns(table, DataSettings()), "Explain:")
    rows = [{"input": record.question, "instruction": record.instruction} for record in records]
    assert len(rows) + len(rejected) == 2479 and len(rejected) < 10

    form = prompt_format(FORMATS[preset])
    base = save_model(tmp_path / "base", vocabulary)
    tokenizer = load_tokenizer(base, form)
    messages = [
        [{"role": "system", "content": row["instruction"]}, {"role": "user", "content": row["input"]}] for row in rows
    ]
    template, tokens = chat_template(form, bos=bool(tokenizer.bos_text)), {"eos_token": tokenizer.eos_text}
    by_transformers, _ = render_jinja_template(
        messages, chat_template=template, add_generation_prompt=True, bos_token=tokenizer.bos_text, **tokens
    )
    texts = [prompt_text(form, row["input"], row["instruction"]) for row in rows]
    assert by_transformers == [tokenizer.bos_text + text for text in texts]

    rows = rows[::step]
    gguf = tmp_path / "real.gguf"
    export(base, None, {"F16": gguf}, template, "real")
    settings = OllamaSettings(host=ollama.url)
    client = library(ollama.url)
    client.create(
        "real",
        files={"real.gguf": client.create_blob(str(gguf))},
        template=go_template(form, tokenizer.eos_text),
        system=form.instruction,
        parameters={
            "num_ctx": 2048,
            "num_thread": 1,
            "stop": [tokenizer.eos_text],
        },  # threads would wait for each other
    )
    monkeypatch.setattr(prompt_parity, "COUNT_SECONDS", float("inf"))
    started = time.monotonic()
    with server.http(settings) as http:
        found = prompt_parity.prove_prompts(http, "real", gguf, form, tokenizer, rows)
    with capsys.disabled():
        print(f"\n{preset}, {vocabulary}: {len(rows)} prompts in {time.monotonic() - started:.1f} s, {found}")
    assert found["prompts_verified"] == found["prompts_tokenized"] == found["prompts_counted"] == len(rows)
    assert found["control_like_prompts"] == 0
    assert len(found["greedy"]) == greedy.QUESTIONS
