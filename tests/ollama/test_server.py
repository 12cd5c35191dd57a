"""What answers at an address, and asking it."""

import json
import socket
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from tests.conftest import call_toolkit
from tests.support.faults import Handler, serving
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import server
from toolkit.ollama.failures import ServerError
from toolkit.register import checks as register_checks


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("0.34.1", (0, 34, 1)),
        ("v0.5.13-rc2", (0, 5, 13)),
        ("0.0.0", (0, 0, 0)),
        ("0.17", None),
        ("1.2.3.4", None),
        ("latest", None),
    ],
)
def test_versions_are_compared_as_numbers(text: str, numbers: tuple[int, int, int] | None) -> None:
    assert server.parse_version(text) == numbers


def answering(body: str, status: int = 200, kind: str = "application/json") -> AbstractContextManager[str]:
    return serving(lambda handler: handler.answer(status, body.encode(), kind))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("found", "usable"),
    [("0.24.0", False), ("0.9.9", False), ("0.30.0", True), ("0.34.1", True), ("1.0.0", True), ("0.0.0", True)],
)
def test_servers_before_0_30_are_refused_wherever_the_version_is_asked(found: str, usable: bool) -> None:
    with answering(json.dumps({"version": found})) as url:
        settings = OllamaSettings(host=url)
        for ask in (server.version, server.require):
            if usable:
                assert ask(settings) == found
                continue
            with pytest.raises(ToolkitError, match=f"is version {found}; 0.30.0 or later is needed") as caught:
                ask(settings)
            assert caught.value.exit_code == MISSING and "upgrade Ollama" in caught.value.hint


@pytest.mark.parametrize(
    "verb", ["register --rollback", "ask How?", "status", pytest.param("doctor", marks=pytest.mark.slow)]
)
def test_verbs_say_that_a_server_is_too_old(verb: str, tmp_path: Path) -> None:
    (tmp_path / "toolkit.toml").write_text('[model]\nbase = "x"\n[data]\nsource = "none.csv"\n')
    with answering('{"version": "0.24.0"}') as url:
        done = call_toolkit(*verb.split(), cwd=tmp_path, OLLAMA_HOST=url)
    assert "is version 0.24.0; 0.30.0 or later is needed" in " ".join((done.out + done.err).split())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        ("<html><body>Welcome to nginx</body></html>", 200, "text/html"),
        ("<html>Bad gateway</html>", 502, "text/html"),
        ('["0.34.1"]', 200, "application/json"),
        ('{"version": 3}', 200, "application/json"),
        ('{"version": "soon"}', 200, "application/json"),
        ("\udcff", 200, "application/json"),
        ("", 302, "text/plain"),
    ],
)
def test_what_is_no_ollama_is_said_to_be_none(body: str, status: int, kind: str) -> None:
    raw = body.encode("utf-8", "surrogateescape")
    answers = serving(lambda handler: handler.answer(status, raw, kind))
    with answers as url, pytest.raises(ToolkitError, match="is not an Ollama server") as caught:
        server.version(OllamaSettings(host=url))
    assert str(status) in caught.value.message and kind in caught.value.message
    assert caught.value.exit_code == MISSING


def test_a_port_where_nothing_listens_is_no_server() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        settings = OllamaSettings(host=f"127.0.0.1:{probe.getsockname()[1]}")
    assert server.version(settings) is None
    with pytest.raises(ToolkitError, match="no Ollama server answers") as caught:
        server.require(settings)
    assert caught.value.exit_code == MISSING


@pytest.mark.parametrize(
    ("url", "installed", "said"),
    [
        ("http://127.0.0.1:9", True, "start one with `ollama serve`"),
        ("http://localhost:9", False, "install Ollama (https://ollama.com/download), start one with `ollama serve`"),
        ("http://127.0.0.1:9/path", False, "install Ollama (https://ollama.com/download), start one with"),
        ("http://192.0.2.1:9", False, "on that machine, start one with `ollama serve`"),
    ],
)
def test_how_to_start_a_server_fits_the_machine(
    url: str, installed: bool, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if installed:
        (tmp_path / "ollama").touch(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ToolkitError) as caught:
        server.require(OllamaSettings(host=url))
    assert str(caught.value.hint).startswith(said)
    assert (
        f"{said.partition('start')[0]}start one with"
        in register_checks.ollama(Config(ollama=OllamaSettings(host=url)), needed=True).fix
    )


@pytest.mark.slow
def test_a_port_that_takes_connections_but_says_nothing() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        with pytest.raises(ToolkitError, match="sends nothing"):
            server.version(OllamaSettings(host=f"127.0.0.1:{silent.getsockname()[1]}", timeout=0.3))


def test_a_port_of_another_protocol() -> None:
    answers = serving(lambda handler: handler.wfile.write(b"SSH-2.0-OpenSSH_9.6\r\n") and handler.reset())
    with answers as url, pytest.raises(ToolkitError, match="is not an Ollama server"):
        server.version(OllamaSettings(host=url))


def test_a_plain_server_behind_an_https_address() -> None:
    with answering('{"version": "0.34.1"}') as url, pytest.raises(ToolkitError, match="no TLS connection"):
        server.version(OllamaSettings(host=url.replace("http", "https")))


def test_no_proxy_of_the_environment_stands_before_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    with answering('{"version": "0.34.1", "models": []}') as url:
        settings = OllamaSettings(host=url)
        assert server.version(settings) == "0.34.1"
        with server.http(settings) as http:
            assert server.held(http) == {}


@pytest.mark.slow
def test_the_key_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    seen = []

    def respond(handler: Handler) -> bool:
        seen.append(handler.headers.get("Authorization"))
        return handler.answer(200, b'{"version": "0.34.1", "models": []}')

    with serving(respond) as url:
        settings = OllamaSettings(host=url)
        server.version(settings)
        with server.http(settings) as http:
            http.get("/")
    assert seen == ["Bearer secret"] * 2


@pytest.mark.parametrize(
    ("name", "tag", "listed"),
    [
        ("MedAssist", "Q8_0", "medassist:q8_0"),
        ("registry.ollama.ai/library/m", "latest", "m:latest"),
        ("library/m", "latest", "m:latest"),
        ("user/m", "latest", "user/m:latest"),
    ],
)
def test_names_as_the_server_lists_them(name: str, tag: str, listed: str) -> None:
    assert server.listed_name(name, tag) == listed


def test_a_list_that_is_none_is_not_ollamas() -> None:
    answers = answering('{"models": {"a": 1}}')
    with answers as url, server.http(OllamaSettings(host=url)) as http, pytest.raises(json.JSONDecodeError):
        server.held(http)


def test_a_stream_ends_with_the_servers_error() -> None:
    lines = '{"response": "a"}\n\n{"error": "out of memory"}\n'
    with answering(lines, kind="application/x-ndjson") as url, server.http(OllamaSettings(host=url)) as http:
        found = server.stream(http, "/api/generate", {})
        assert next(found) == {"response": "a"}
        with pytest.raises(ServerError, match="out of memory"):
            next(found)
