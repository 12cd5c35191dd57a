"""Every format on a real server: its rendering, transformers' Jinja, llama.cpp's Jinja and the training text agree."""

from pathlib import Path
from typing import Any

import pytest

from tests.conftest import needed, ollama_binary
from tests.register.conftest import ROWS
from tests.support import tiny_gguf as tiny
from tests.support.llama_server import llama_server, program_of
from tests.support.ollama_server import OllamaServer, library
from tests.support.prompts import FORMATS
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import server
from toolkit.prompt import format, renderings, templates
from toolkit.prompt.format import PromptFormat
from toolkit.register import verify
from toolkit.register.served_prompt import prompts_of

pytestmark = pytest.mark.ollama

CONVERSATIONS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": "a"}],
    [{"role": "developer", "content": "d"}, {"role": "user", "content": "a"}],
    [{"role": "developer", "content": "d"}, {"role": "system", "content": "s"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "system", "content": "s"}, {"role": "user", "content": "b"}],
    [{"role": "assistant", "content": "Hello"}, {"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The answer is"}],
    [
        {"role": "system", "content": None},
        {"role": "user", "content": None},
        {"role": "assistant", "content": ""},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": " It"},
    ],
    [{"role": "system", "content": "s\n"}, {"role": "user", "content": " {{ .System }} "}],
    [{"role": "system", "content": ""}, {"role": "user", "content": "a"}],
    [
        {"role": "system", "content": "s1"},
        {"role": "user", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "assistant", "content": "d"},
        {"role": "system", "content": "s2"},
        {"role": "user", "content": "e\r\n\xa0"},
    ],
    [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "### Input:"},
    ],
]


# A prepared chat, whose texts are hard to render.
CHAT: dict[str, Any] = {
    "instruction": "Be {{ .System }}",
    "history": [["a\r\n\xa0", "{{ .Prompt }} <think>"], ["### Input:\n\n", "### Response:"], ["b", "  c\n"]],
    "input": "{% raw %} d",
}


# Of text parts, which only /v1 takes.
PARTS = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
IN_PARTS: list[list[dict[str, Any]]] = [
    [{"role": "user", "content": PARTS}],
    [{"role": "system", "content": PARTS}, {"role": "user", "content": PARTS}, {"role": "assistant", "content": "c"}],
]


def by_transformers(form: PromptFormat, messages: list[dict[str, Any]]) -> str:
    from transformers.utils.chat_template_utils import render_jinja_template

    template = templates.chat_template(form, bos=True)
    rendered, _ = render_jinja_template(
        [messages], chat_template=template, bos_token=tiny.BOS, eos_token=tiny.EOS, add_generation_prompt=True
    )
    return str(rendered[0])


@pytest.mark.parametrize("name", FORMATS)
def test_every_rendering_of_a_format_is_the_same(ollama: OllamaServer, tmp_path: Path, name: str) -> None:
    """The Modelfile's grammar cannot hold some of these formats, so the model is made through the API."""
    form = format.prompt_format(FORMATS[name])
    eos = form.eos or tiny.EOS
    gguf = tiny.write(tmp_path / "model.gguf", chat_template=templates.chat_template(form, bos=True))
    client = library(ollama.url)
    digest = client.create_blob(str(gguf))
    client.create(
        "format", files={"model.gguf": digest}, template=templates.go_template(form, eos), system=form.instruction
    )
    program = program_of(ollama_binary())
    needed(program.is_file(), str(program))
    with server.http(_settings(ollama.url)) as http, llama_server(program, gguf) as native:
        assert server.call(http, "/api/show", {"model": "format"})["template"] == templates.go_template(form, eos)
        for messages in CONVERSATIONS:
            expected = renderings.conversation(form, messages, eos)
            assert by_transformers(form, messages) == tiny.BOS + expected
            body = {"model": "format", "messages": messages, "stream": False, "_debug_render_only": True}
            assert server.call(http, "/api/chat", body)["_debug_info"]["rendered_template"] == expected
            assert server.call(native, "/apply-template", {"messages": messages})["prompt"] == expected
        for messages in IN_PARTS:
            expected = renderings.conversation(form, messages, eos)
            assert by_transformers(form, messages) == tiny.BOS + expected
            body = {"model": "format", "messages": messages, "_debug_render_only": True}
            assert server.call(http, "/v1/chat/completions", body)["_debug_info"]["rendered_template"] == expected
            assert server.call(native, "/apply-template", {"messages": messages})["prompt"] == expected
        rows = [prompt for row in [*ROWS, CHAT] for prompt in prompts_of(row, form)]
        assert len(rows) == len(ROWS) + 2
        verify.every_prompt(http, "format", form, eos, rows)


def _settings(url: str) -> OllamaSettings:
    from toolkit.core.output_settings import OllamaSettings

    return OllamaSettings(host=url)
