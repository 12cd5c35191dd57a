"""Uploads through a proxy that has a limit for a request's size: no server needed."""

from pathlib import Path

import pytest

from tests.support.faults import Handler, serving
from toolkit.core.errors import FAILED, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import blobs, server
from toolkit.ollama.failures import translate_errors

PAGE = b"<html>\r\n<head><title>413 Request Entity Too Large</title></head>\r\n<body>nginx/1.24.0</body>\r\n</html>\r\n"


@pytest.mark.parametrize("reads", ["nothing", "some", "all"])
def test_a_proxys_limit_is_named_whenever_it_answers(
    reads: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(blobs, "PAUSES", (0.01, 0.01))
    path = tmp_path / "model.gguf"
    path.write_bytes(bytes(8 << 20))

    def respond(handler: Handler) -> bool:
        if handler.command == "HEAD":
            return handler.answer(404, b"")
        if reads == "all":
            handler.body()
        elif reads == "some":
            handler.rfile.read(1 << 20)
        return handler.answer(413, PAGE, "text/html")

    with serving(respond) as url:
        settings = OllamaSettings(host=url)
        with (
            server.http(settings) as http,
            pytest.raises(ToolkitError) as caught,
            translate_errors(settings, "uploading `model.gguf`"),
        ):
            blobs.upload(http, path, "ab" * 32)
    assert "refused the size of the request while uploading `model.gguf`: HTTP 413" in caught.value.message
    assert "client_max_body_size" in caught.value.hint and "export" not in caught.value.hint
    assert caught.value.exit_code == FAILED
