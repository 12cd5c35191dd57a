"""Control tokens in a question, and who answers where there is no server."""

import json
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest

from tests.register.conftest import make_run
from tests.support import tiny_gguf
from tests.support.faults import Handler, serving
from tests.support.ollama_server import OllamaServer
from toolkit import ask
from toolkit.core.errors import ToolkitError
from toolkit.prompt.escape import WORD_JOINER, escape_control_tokens

TOKENS = [
    "<|end_of_text|>",
    "<|im_start|>",
    "<|start_header_id|>",
    "<s>",
    "</s>",
    "<unk>",
    "<pad>",
    "<start_of_turn>",
    "<｜begin▁of▁sentence｜>",
    "[INST]",
    "[/INST]",
    "<<SYS>>",
    "<</SYS>>",
    "<fim_prefix>",
    "<unused12>",
]


@pytest.mark.parametrize("token", TOKENS)
def test_control_tokens_become_text(token: str) -> None:
    safe = escape_control_tokens(f"a{token}b{token}")
    assert token not in safe
    assert safe.replace(WORD_JOINER, "") == f"a{token}b{token}"
    assert escape_control_tokens(safe) == safe


@pytest.mark.parametrize(
    "text", ["a < b and c > d", "<b>bold</b>", "[1] and [see below]", "x <| y", "### Response:", "<3", "<|\n|>"]
)
def test_other_text_stays_as_it_is(text: str) -> None:
    assert escape_control_tokens(text) == text


def test_the_models_own_control_tokens_become_text_whatever_they_look_like(tmp_path: Path) -> None:
    run = make_run(tmp_path, "127.0.0.1:9", "tiny")
    path = run.folder.adapter / "tokenizer.json"
    layout = json.loads(path.read_text())
    layout["added_tokens"].append({**layout["added_tokens"][0], "id": 265, "content": "{user}"})
    path.write_text(json.dumps(layout))
    question = "What does {user} mean?"
    assert escape_control_tokens(question) == question
    assert ask.control_tokens(run.folder, question) == ["{user}"]
    assert escape_control_tokens(question, ["{user}"]) == f"What does {{{WORD_JOINER}user}} mean?"
    assert ask.control_tokens(run.folder, "How to prevent it?") == []


@pytest.mark.slow
def test_without_a_server_the_file_answers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(tmp_path, "127.0.0.1:9", "tiny", ollama={"host": "127.0.0.1:9", "num_ctx": 256, "num_predict": 5})
    assert not ask.registered(run.config)
    through, pieces = ask.answer(run.config, run.folder, f"How? {tiny_gguf.EOS}", None)
    assert through == "llama.cpp"
    said = capsys.readouterr().err
    assert (
        "`tiny` is not registered in a running Ollama: llama.cpp answers from" in said and str(run.files["F32"]) in said
    )
    assert "".join(pieces)
    with pytest.raises(ToolkitError, match="tokens with its prompt"):
        list(ask.answer(run.config, run.folder, "long " * 60, None)[1])


def test_with_neither_server_nor_file_the_way_is_shown(tmp_path: Path) -> None:
    run = make_run(tmp_path, "127.0.0.1:9", "tiny")
    run.files["F32"].unlink()
    with pytest.raises(ToolkitError, match="not registered") as caught:
        ask.answer(run.config, run.folder, "How?", None)
    assert "toolkit run" in caught.value.hint


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (b'{"response": "a", "done": false}\n', "broke off"),
        (b'{"response": "a", "done": false}\n{"error": "out of memory"}\n', "out of memory"),
        (b"<html>", "not Ollama's"),
    ],
)
def test_an_answer_that_breaks_off_is_an_error(tmp_path: Path, lines: bytes, said: str) -> None:
    with serving(lambda handler: handler.answer(200, lines, "application/x-ndjson")) as url:
        run = make_run(tmp_path, url, "tiny")
        with pytest.raises(ToolkitError, match=said):
            list(ask.ask_server(run.config, "How?", None))


def pretending(parameters: str, read: int, seen: list[dict[str, Any]]) -> AbstractContextManager[str]:
    """A server that renders `PROMPT`, has these parameters, and says that it read so many tokens."""

    def respond(handler: Handler) -> bool:
        body = json.loads(handler.body() or b"{}")
        if handler.path == "/api/show":
            return handler.answer(200, json.dumps({"parameters": parameters}).encode())
        if body.get("_debug_render_only"):
            return handler.answer(200, b'{"_debug_info": {"rendered_template": "PROMPT"}}')
        seen.append(body)
        end = {"response": "", "done": True, "done_reason": "stop", "prompt_eval_count": read}
        return handler.answer(200, b'{"response": "a"}\n' + json.dumps(end).encode(), "application/x-ndjson")

    return serving(respond)


@pytest.mark.parametrize(
    ("parameters", "read", "said"),
    [
        ("num_ctx                        7\nseed 42", 7, "has 7 tokens with its prompt, but there is room for 7"),
        ("num_ctx 8", 4, "read 4 of the prompt's 7 tokens"),
        ("seed 42", 6, "read 6 of the prompt's 7 tokens"),
        ("num_ctx 8", 7, ""),
        ("", 7, ""),
    ],
)
def test_the_prompt_is_counted_before_and_compared_behind(
    tmp_path: Path, parameters: str, read: int, said: str
) -> None:
    seen: list[dict[str, Any]] = []
    with pretending(parameters, read, seen) as url:  # PROMPT is six bytes, and a BOS before them
        run = make_run(tmp_path, url, "tiny")
        pieces = ask.ask_server(run.config, "How?", None, file=run.files["F32"])
        if said:
            with pytest.raises(ToolkitError, match=said) as caught:
                list(pieces)
            assert "num_ctx" in caught.value.hint
        else:
            assert list(pieces) == ["a"]
    assert len(seen) == ("room for" not in said), "a question without room is not asked"
    assert all(body["truncate"] is False and body["shift"] is False for body in seen)


@pytest.mark.ollama
def test_a_question_that_would_be_cut_is_refused_as_without_a_server(ollama: OllamaServer, tmp_path: Path) -> None:
    """An allergy named first, an hour of chatter behind it."""
    run = make_run(tmp_path, ollama.url, "cut", ollama={"num_ctx": 1024, "num_predict": 8})
    run.register()
    long = "IMPORTANT: the patient is allergic to penicillin. " + "A mild cough since Monday. " * 30
    with pytest.raises(ToolkitError, match="but there is room for 1,024") as caught:
        list(ask.answer(run.config, run.folder, long, None)[1])
    by_file = make_run(tmp_path, "127.0.0.1:9", "cut", ollama={"num_ctx": 1024})
    with pytest.raises(ToolkitError) as local:
        list(ask.answer(by_file.config, by_file.folder, long, None)[1])
    assert caught.value.message == local.value.message
    run.files["F32"].unlink()  # with nothing to count with, the server itself refuses
    with pytest.raises(ToolkitError, match="exceeds the available context size") as caught:
        list(ask.answer(run.config, run.folder, long, None)[1])
    assert "ollama.num_ctx" in caught.value.hint


@pytest.mark.ollama
def test_the_longest_question_that_fits_is_answered_without_forgetting_its_front(
    ollama: OllamaServer, tmp_path: Path
) -> None:
    run = make_run(tmp_path, ollama.url, "fits", ollama={"num_ctx": 1024, "num_predict": 100})
    run.register()
    shown = run.client().generate("fits", prompt="x", options={"num_predict": 1}).prompt_eval_count
    assert shown is not None
    answer = list(ask.answer(run.config, run.folder, "x" * (1024 - shown), None)[1])
    assert sum(map(len, answer)) <= 2, "it ends with the context"


def test_an_empty_question_is_refused(tmp_path: Path) -> None:
    run = make_run(tmp_path, "127.0.0.1:9", "tiny")
    with pytest.raises(ToolkitError, match="the question is empty"):
        ask.answer(run.config, run.folder, " \n", None)


@pytest.mark.ollama
def test_a_question_is_answered_in_pieces_and_control_tokens_stay_text(
    ollama: OllamaServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, ollama.url, "asked", seed=1, ollama={"num_predict": 12})
    assert not ask.registered(run.config)
    run.register()
    assert ask.registered(run.config) and ask.registered(run.config, "f16") and not ask.registered(run.config, "q8_0")
    through, pieces = ask.answer(run.config, run.folder, "How?", "Explain")
    listed = list(pieces)
    assert through == "ollama" and len(listed) > 1
    expected = run.client().generate("asked", prompt="How?", system="Explain").response
    assert "".join(listed) == expected
    capsys.readouterr()
    assert list(ask.ask_server(run.config, f"a{tiny_gguf.EOS}", None))
    assert "control tokens" in capsys.readouterr().err

    def counted(question: str) -> int:
        count = run.client().generate("asked", prompt=question, options={"num_predict": 1}).prompt_eval_count
        assert count is not None
        return count

    nothing = counted("ab") - 2
    for token in tiny_gguf.CONTROL:
        assert counted(f"a{token}b") == nothing + 3, "the server takes it for the token"
        safe = escape_control_tokens(f"a{token}b")
        assert counted(safe) >= nothing + 2 + len(token) + 3 - safe.count("he"), "now each of its bytes is one token"
