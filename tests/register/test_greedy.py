"""Greedy answers are shown beside each other; and every client of a real server sends the same prompt."""

import asyncio
import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.register.conftest import make_run
from tests.support.faults import serving
from tests.support.ollama_server import OllamaServer
from tests.support.outside import smollm
from toolkit import llamacpp
from toolkit.core import console
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import server
from toolkit.prompt import format, renderings, templates
from toolkit.register import greedy
from toolkit.register.served_prompt import ServedPrompt


@pytest.mark.parametrize(
    ("answer", "recorded"),
    [
        ({"response": "Drink water.", "done_reason": "stop", "eval_count": 3}, "Drink water."),
        ({"response": "", "done": False}, ""),
    ],
    ids=["another answer", "no answer"],
)
def test_an_answer_that_differs_is_recorded_and_fails_nothing(
    answer: dict[str, Any], recorded: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(console, "PLAIN_INTERVAL", 0.0)
    with (
        serving(lambda handler: handler.answer(200, json.dumps(answer).encode())) as url,
        server.http(OllamaSettings(host=url)) as http,
    ):
        found = greedy.beside(http, "m", [ServedPrompt("How?", "Explain:")], ["Drink tea."])
    assert found == [{"question": "How?", "llama.cpp": "Drink tea.", "ollama": recorded}]
    assert "greedy answers of Ollama: 1/1 answers" in capsys.readouterr().err  # each may take seconds


@pytest.mark.slow
@pytest.mark.ollama
def test_every_client_sends_the_same_prompt(ollama: OllamaServer, tmp_path: Path) -> None:
    import ollama as library

    gguf = smollm()
    run = make_run(
        tmp_path, ollama.url, "same", prompt={"preset": "chatml", "instruction": "Explain as a doctor"},
        export={"quantizations": ["F32"], "default": "F32"},
    )  # fmt: skip
    form = format.prompt_format(run.config.prompt)
    client = run.client()
    # Threads would wait for each other: beside other work on two cores an answer takes two minutes instead of seconds.
    client.create(
        "same",
        files={"same.gguf": client.create_blob(str(gguf))},
        template=templates.go_template(form, form.eos),
        system=form.instruction,
        parameters={**greedy.greedy_parameters(8), "num_ctx": 1024, "num_thread": 1, "stop": [form.eos]},
    )
    question = "How to prevent Noonan syndrome?"
    messages = [{"role": "user", "content": question}]
    with llamacpp.opened(gguf, 1024) as llm:
        wanted = len(llamacpp.tokenize(llm, renderings.render(form, question)))
        [answer] = greedy.in_llama_cpp(llm, [llamacpp.tokenize(llm, renderings.render(form, question))])
        assert answer
    shown = ollama.run("run", "--verbose", "same", question).stderr
    told = re.search(r"prompt eval count: +(\d+)", shown)
    assert told, shown
    counted = {
        "ollama run": int(told[1]),
        "chat": client.chat("same", messages=messages).prompt_eval_count,
        "generate": client.generate("same", prompt=question).prompt_eval_count,
        "stream": list(client.generate("same", prompt=question, stream=True))[-1].prompt_eval_count,
        "chat stream": list(client.chat("same", messages=messages, stream=True))[-1].prompt_eval_count,
        "async": asyncio.run(
            library.AsyncClient(ollama.url, trust_env=False).generate("same", prompt=question)
        ).prompt_eval_count,
    }
    assert set(counted.values()) == {wanted}, counted
