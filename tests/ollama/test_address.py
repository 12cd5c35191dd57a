"""OLLAMA_HOST is read as Ollama reads it, and minded only by verbs that need a server."""

import socket
from pathlib import Path

import pytest

from tests.conftest import Called, call_toolkit
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama.address import is_loopback, server_address, warn_if_open


@pytest.fixture(autouse=True)
def _no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OLLAMA_HOST", raising=False)
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)


# What envconfig.Host of ollama/ollama makes of it; beside its own tests' cases, those of public reports.
READ = {
    "": "http://127.0.0.1:11434",
    "1.2.3.4": "http://1.2.3.4:11434",
    ":56789": "http://127.0.0.1:56789",
    "1.2.3.4:56789": "http://1.2.3.4:56789",
    "http://1.2.3.4": "http://1.2.3.4:80",
    "https://1.2.3.4": "https://1.2.3.4:443",
    "https://1.2.3.4:56789": "https://1.2.3.4:56789",
    "example.com": "http://example.com:11434",
    "example.com/": "http://example.com:11434",
    "example.com:56789/": "http://example.com:56789",
    "https://example.com:56789/path/": "https://example.com:56789/path",
    "ollama.com": "https://ollama.com:443",
    "example_host:1": "http://example_host:1",
    "[0001:002:003:0004::1]:56789": "http://[0001:002:003:0004::1]:56789",
    "http://[0001:002:003:0004::1]": "http://[0001:002:003:0004::1]:80",
    "::1": "http://[::1]:11434",
    "[::1]": "http://[::1]:11434",
    "[::1]:": "http://[::1]:11434",
    "fe80::1%eth0": "http://[fe80::1%eth0]:11434",
    '"127.0.0.1:11434"': "http://127.0.0.1:11434",
    "'127.0.0.1:8080'": "http://127.0.0.1:8080",
    " 127.0.0.1:8080 ": "http://127.0.0.1:8080",
    "\t' example.com '\n": "http://example.com:11434",
    '"': "http://127.0.0.1:11434",
    "127.0.0.1:08080": "http://127.0.0.1:8080",
    "HTTP://example.com": "http://example.com:11434",
    "Http://1.2.3.4:80/x": "http://1.2.3.4:80/x",
    "HTTPS://example.com": "https://example.com:11434",
    "EXAMPLE.com": "http://EXAMPLE.com:11434",
    "OLLAMA.COM": "http://OLLAMA.COM:11434",
}
# A server binds to these; a client means loopback.
BOUND = {
    "0.0.0.0": "http://127.0.0.1:11434",
    "0.0.0.0:8080": "http://127.0.0.1:8080",
    "[::]:8080": "http://[::1]:8080",
    "::": "http://[::1]:11434",
    " localhost ": "http://localhost:11434",
}
# A port that is none is replaced, as Ollama does; the warning names it.
BAD_PORTS = {
    "127.0.0.1:99999": "http://127.0.0.1:11434",
    "127.0.0.1:-1": "http://127.0.0.1:11434",
    "host:port": "http://host:11434",
    "host:": "http://host:11434",
    "http://1.2.3.4:65536": "http://1.2.3.4:80",
    "https://1.2.3.4:1_0/x": "https://1.2.3.4:443/x",
    "host:0x50": "http://host:11434",
}


@pytest.mark.parametrize("text", [*READ, *BOUND])
def test_an_address_is_what_ollama_makes_of_it(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = {**READ, **BOUND}[text]
    assert server_address(OllamaSettings(host=text)) == url
    monkeypatch.setenv("OLLAMA_HOST", text)
    assert server_address(OllamaSettings()) == url
    assert is_loopback(url) or text not in BOUND


@pytest.mark.parametrize("text", BAD_PORTS)
def test_a_port_that_is_none_becomes_the_usual_one(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):
        assert server_address(OllamaSettings(host=text)) == BAD_PORTS[text]
    assert " ".join(capsys.readouterr().err.split()).count("as Ollama does") == 1


@pytest.mark.parametrize(
    "text",
    [
        "ftp://host",
        "FTP://host",
        "a b",
        "::1:99999999",
        "[1:2]",
        "ho<st>",
        "http://user@host",
        "host:80:80!",
        "://",
        "hôst",
    ],
)
def test_what_is_no_address_is_refused_with_its_name(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", text)
    with pytest.raises(ToolkitError, match="OLLAMA_HOST is not an address") as caught:
        server_address(OllamaSettings())
    assert text in caught.value.message and caught.value.exit_code == USAGE
    with pytest.raises(ToolkitError, match=r"`ollama.host` is not an address"):
        server_address(OllamaSettings(host=text))


def test_the_setting_goes_before_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", "10.0.0.1:1")
    assert server_address(OllamaSettings()) == "http://10.0.0.1:1"
    assert server_address(OllamaSettings(host="10.0.0.2:2")) == "http://10.0.0.2:2"


def test_plain_http_to_another_machine_is_warned_about_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("OLLAMA_API_KEY", "secret")
    for url in ("http://192.0.2.1:80", "http://192.0.2.1:80", "https://192.0.2.1:443", "http://127.0.0.1:1"):
        warn_if_open(url)
    warnings = capsys.readouterr().err
    assert warnings.count("not encrypted") == 1
    assert "OLLAMA_API_KEY" in warnings


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("project")
    (folder / "toolkit.toml").write_text('[model]\nbase = "x"\n[data]\nsource = "none.csv"\n')
    return folder


@pytest.fixture(scope="module", params=["status", "prepare --dry-run", pytest.param("doctor", marks=pytest.mark.slow)])
def plain(request: pytest.FixtureRequest, project: Path) -> tuple[list[str], Called]:
    """A verb that needs no server, and how it ends with an address that is one."""
    verb = request.param.split()
    return verb, call_toolkit(*verb, cwd=project, OLLAMA_HOST="127.0.0.1:9")


@pytest.mark.slow
@pytest.mark.parametrize("text", ["ftp://host", "'::1'", "127.0.0.1:99999", "::1:99999999", "a b"])
def test_a_verb_that_needs_no_server_does_not_mind(plain: tuple[list[str], Called], text: str, project: Path) -> None:
    verb, usual = plain
    done = call_toolkit(*verb, cwd=project, OLLAMA_HOST=text)
    assert done.code == usual.code
    assert "bug in the toolkit" not in done.out + done.err and "Traceback" not in done.out + done.err


@pytest.mark.parametrize("verb", [["ask", "How?"], ["register", "--rollback"]], ids=" ".join)
def test_a_verb_that_needs_one_names_the_address(verb: list[str], project: Path) -> None:
    done = call_toolkit(*verb, cwd=project, OLLAMA_HOST="ftp://there")
    assert done.code == USAGE and "ftp://there" in done.err


def test_an_address_in_quotes_and_spaces_finds_its_server(project: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = call_toolkit("status", cwd=project, OLLAMA_HOST=f' "127.0.0.1:{port}" ')
    assert f"no server answers at http://127.0.0.1:{port}" in " ".join(done.out.split())
