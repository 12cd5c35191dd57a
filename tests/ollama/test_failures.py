"""How a server's failures read, and that each hint is of its own situation."""

import json
import re

import httpx
import pytest

from toolkit.core.errors import FAILED, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama.failures import ServerError, translate_errors

NGINX = (
    "<html>\r\n<head><title>{}</title></head>\r\n<body>\r\n<center><h1>{}</h1></center><hr>nginx/1.24.0</body></html>"
)


def refused(body: str, status: int) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught, translate_errors(OllamaSettings(host="10.0.0.1:5"), "testing"):
        raise ServerError(body, status)
    return caught.value


@pytest.mark.parametrize(
    ("exception", "message"),
    [
        (ServerError('{"error": "no luck"}', 500), "refused while testing: no luck"),
        (httpx.ReadTimeout("slow"), "no complete answer within 3 s while testing"),
        (httpx.RemoteProtocolError("gone"), "broke while testing: gone"),
        (ConnectionError("refused"), "broke while testing: refused"),
        (json.JSONDecodeError("bad", "<html>", 0), "not Ollama's while testing"),
    ],
)
def test_failures_say_what_was_being_done(exception: Exception, message: str) -> None:
    with (
        pytest.raises(ToolkitError, match=message) as caught,
        translate_errors(OllamaSettings(timeout=3.0), "testing"),
    ):
        raise exception
    assert caught.value.exit_code == FAILED and caught.value.hint


@pytest.mark.parametrize(
    "body", [NGINX.format(*["413 Request Entity Too Large"] * 2), "", "Payload Too Large", "<h1>no"]
)
def test_a_proxys_limit_is_named_and_not_the_file(body: str) -> None:
    found = refused(body, 413)
    assert "proxy in front of the Ollama server at http://10.0.0.1:5" in found.message and "HTTP 413" in found.message
    assert "client_max_body_size" in found.hint and "export" not in found.hint


@pytest.mark.parametrize(
    "text",
    [
        "write /var/lib/ollama/blobs/sha256-ab: no space left on device",
        "mkdir /root/.ollama/models: disk quota exceeded",
        "There is not enough space on the disk.",
    ],
)
def test_a_full_disk_is_the_servers(text: str) -> None:
    found = refused(json.dumps({"error": text}), 500)
    assert text in found.message
    assert "server's disk" in found.hint and "OLLAMA_MODELS" in found.hint and "export" not in found.hint


@pytest.mark.parametrize(
    ("body", "status", "said", "hinted"),
    [
        ('{"error": "open /x/manifests: permission denied"}', 500, "permission denied", "OLLAMA_MODELS"),
        ('{"error": "model requires more system memory (9 GiB) than is available (4 GiB)"}', 500, "9 GiB", "memory"),
        ('{"error": "unsupported architecture \\"X\\""}', 500, "architecture", "newer Ollama"),
        ('{"error": "digest mismatch, expected \\"a\\""}', 400, "digest mismatch", "toolkit export --force"),
        ('{"error": "server busy, please try again.  maximum pending requests exceeded"}', 503, "busy", "wait"),
        ('{"error": "model \\"m\\" not found"}', 404, "not found", "toolkit register"),
        (
            NGINX.format("502 Bad Gateway", "502 Bad Gateway"),
            502,
            "proxy in front of .* 502 Bad Gateway$",
            "still runs",
        ),
        ("unauthorized", 401, "unauthorized", "OLLAMA_API_KEY"),
        ("", 418, "HTTP 418", "own log"),
    ],
)
def test_each_hint_is_of_its_own_situation(body: str, status: int, said: str, hinted: str) -> None:
    found = refused(body, status)
    assert re.search(said, found.message) and hinted in found.hint
    assert "<" not in found.message


def test_llama_servers_own_error_is_read_out_of_ollamas() -> None:
    inner = {"error": {"code": 400, "message": "request (513 tokens) exceeds the available context size (512 tokens)"}}
    found = refused(json.dumps({"error": json.dumps(inner)}), 400)
    assert found.message.endswith("request (513 tokens) exceeds the available context size (512 tokens)")
    assert "ollama.num_ctx" in found.hint
