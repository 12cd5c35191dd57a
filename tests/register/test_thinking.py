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
from toolkit.prompt.renderings import conversation, prompt_text
from toolkit.prompt.templates import chat_template, go_template

pytestmark = [pytest.mark.slow, pytest.mark.ollama]

SAYS = ["<think>", "H", "</think>", "Y", "<|im_end|>"]
TALKS: list[list[dict[str, str]]] = [
    [{"role": "user", "content": "a"}],
    [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}],
    [{"role": "system", "content": "s"}, {"role": "user", "content": "a"}, {"role": "assistant", "content": "The "}],
]
# Earlier answers hold their thoughts, as a client sends them that asked with `think` false.
DEEP = [
    {"role": "system", "content": "s"},
    {"role": "user", "content": "a"},
    {"role": "assistant", "content": "<think>H</think>b"},
    {"role": "user", "content": "c"},
    {"role": "assistant", "content": "<think>\nH\n</think>\n\nd"},
    {"role": "user", "content": "e"},
]
KINDS = {"qwen3": families.save_thinking, "smollm3": families.save_thinking_llama}
THINK: list[dict[str, Any]] = [{}, {"think": True}, {"think": False}]


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def talking(kind: str, ollama: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """The models `closed`, `thoughts` and `plain` on a server, each with its own format's renderings."""
    folder = tmp_path_factory.mktemp("thinking")
    save_talker(folder / "base", "Ċ", *SAYS, vocabulary=KINDS[kind], family=kind)
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
        assert server.call(http, "/api/show", {"model": "closed"})["details"]["family"] == kind
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


def without_thoughts(talk: list[dict[str, str]]) -> list[dict[str, str]]:
    bare = {"<think>H</think>b": "b", "<think>\nH\n</think>\n\nd": "d"}
    return [{**message, "content": bare.get(message["content"], message["content"])} for message in talk]


@pytest.mark.parametrize("name", ["chatml, closed", "chatml, thoughts"])
@pytest.mark.parametrize("think", THINK, ids=["unset", "true", "false"])
def test_thoughts_in_earlier_answers(talking: httpx.Client, kind: str, name: str, think: dict[str, bool]) -> None:
    """Ollama removes them for Qwen3, as its own template does; of another family they stay as the client sent them.

    Those that come apart, as Ollama gave them, are left out for both.
    """
    if think.get("think") and name == "chatml, closed":
        pytest.skip("refused: such a model never thinks")
    form = prompt_format(FORMATS[name])
    bare = without_thoughts(DEEP)
    wanted = conversation(form, bare if kind == "qwen3" else DEEP, form.eos)
    assert rendered(talking, "/api/chat", name, messages=DEEP, **think) == wanted
    apart = [{**message, "thinking": "H"} if message["role"] == "assistant" else message for message in bare]
    assert rendered(talking, "/api/chat", name, messages=apart, **think) == conversation(form, bare, form.eos)


@pytest.mark.parametrize("think", THINK, ids=["unset", "true", "false"])
def test_an_answer_after_several_turns_thinks_once(talking: httpx.Client, think: dict[str, bool]) -> None:
    said = server.call(talking, "/api/chat", {"model": "thoughts", "messages": DEEP, "stream": False, **think})[
        "message"
    ]
    whole = f"<think>{said['thinking']}</think>{said['content']}" if said.get("thinking") else said["content"]
    assert whole == "<think>H</think>Y"
