"""A thinking model in Ollama: what it renders with `think` unset, true and false, and where thoughts go."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from tests.support import families
from tests.support.ollama_server import OllamaServer, library
from tests.support.prompts import FORMATS
from tests.support.talker import save_talker
from toolkit.core.output_settings import OllamaSettings
from toolkit.export import export
from toolkit.ollama import server
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import chat_template, conversation, go_template, prompt_text

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

SAYS = ["<think>", "H", "</think>", "Y", "<|im_end|>"]
TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "The "}],
]
THINK: list[dict[str, Any]] = [{}, {"think": True}, {"think": False}]


@pytest.fixture(scope="module")
def talking(ollama: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The models `closed`, `thoughts` and `plain` on a server, each with its own format's renderings."""
    folder = tmp_path_factory.mktemp("thinking")
    save_talker(folder / "base", "Ċ", *SAYS, vocabulary=families.save_thinking)
    client = library(ollama.url)
    for name in ("chatml, closed", "chatml, thoughts", "chatml"):
        form = prompt_format(FORMATS[name])
        path = folder / "model.gguf"
        export(folder / "base", None, {"F16": path}, chat_template(form, bos=False), "talker")
        client.create(
            model_of(name),
            files={"model.gguf": client.create_blob(str(path))},
            template=go_template(form, form.eos),
            system=form.instruction,
            parameters={"temperature": 0, "num_predict": 16, "stop": [form.eos]},
        )
    with server.http(OllamaSettings(host=ollama.url)) as http:
        yield http


def model_of(name: str) -> str:
    return name.rpartition(" ")[2]


def rendered(http: httpx.Client, path: str, name: str, **body: Any) -> str:
    asked = {"model": model_of(name), "stream": False, "_debug_render_only": True, **body}
    return str(server.call(http, path, asked)["_debug_info"]["rendered_template"])


@pytest.mark.parametrize("name", ["chatml, closed", "chatml, thoughts", "chatml"])
@pytest.mark.parametrize("think", THINK, ids=["unset", "true", "false"])
def test_the_rendering_is_the_training_text_whatever_think_says(
    talking: httpx.Client, name: str, think: dict[str, bool]
) -> None:
    form = prompt_format(FORMATS[name])
    if think.get("think") and name != "chatml, thoughts":  # such a model never thinks, and the server says so
        for path, body in (("/api/chat", {"messages": TALKS[0]}), ("/api/generate", {"prompt": "a"})):
            answer = talking.post(path, json={"model": model_of(name), **body, **think})
            assert answer.status_code == 400 and "does not support thinking" in answer.text
        return
    for talk in TALKS:
        assert rendered(talking, "/api/chat", name, messages=talk, **think) == conversation(form, talk, form.eos)
    assert rendered(talking, "/api/generate", name, prompt="a", system="s", **think) == prompt_text(form, "a", "s")


@pytest.mark.parametrize("think", THINK, ids=["unset", "true", "false"])
def test_kept_thoughts_stand_apart_unless_think_is_false(talking: httpx.Client, think: dict[str, bool]) -> None:
    body = {"model": "thoughts", "messages": TALKS[0], "stream": False, **think}
    said = server.call(talking, "/api/chat", body)["message"]
    together = think.get("think") is False
    assert said["content"] == ("<think>H</think>Y" if together else "Y")
    assert said.get("thinking", "") == ("" if together else "H")


def test_a_model_without_the_setting_shows_its_thoughts_in_the_answer(talking: httpx.Client) -> None:
    body = {"model": "chatml", "messages": TALKS[0], "stream": False}
    assert server.call(talking, "/api/chat", body)["message"]["content"] == "<think>H</think>Y"


@pytest.mark.parametrize("name", ["chatml, closed", "chatml, thoughts"])
def test_ollama_removes_thoughts_from_earlier_answers_of_qwen3(talking: httpx.Client, name: str) -> None:
    """As Qwen3's own template does; an answer without its thoughts, as Ollama gave it, stays as it is."""
    form = prompt_format(FORMATS[name])
    talk = TALKS[1]
    raw = [talk[0], {"role": "assistant", "content": "<think>H</think>b"}, talk[2]]
    apart = [talk[0], {"role": "assistant", "content": "b", "thinking": "H"}, talk[2]]
    for sent in (raw, apart):
        assert rendered(talking, "/api/chat", name, messages=sent) == conversation(form, talk, form.eos)
