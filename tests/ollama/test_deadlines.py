"""Servers that drip: the time-out holds for a whole line, however many bytes come in between."""

import time
from contextlib import AbstractContextManager

import httpx
import pytest

from tests.support.faults import Handler, serving
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import server

pytestmark = pytest.mark.slow

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"
CHUNKED = HEADER + b"Transfer-Encoding: chunked\r\n\r\n"


def dripping(pieces: list[bytes], pause: float) -> AbstractContextManager[str]:
    def respond(handler: Handler) -> bool:
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)
        return handler.reset()

    return serving(respond)


def chunk(text: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(text), text)


def drip(text: bytes) -> list[bytes]:
    return [text[i : i + 1] for i in range(len(text))]


SLOW = {
    "body": ([HEADER + b"Content-Length: 50\r\n\r\n", *drip(b"x" * 50)], 0.05),
    "chunks": ([CHUNKED, *(chunk(b"x") for _ in range(50))], 0.05),
    "lines": ([HEADER + b"\r\n", *drip(b'{"a": 1,\r\n' * 5)], 0.05),
    "a line, then a drip": ([CHUNKED, chunk(b'{"response": "a"}\n'), *(chunk(b"x") for _ in range(50))], 0.05),
    "a line, then nothing": ([CHUNKED, chunk(b'{"response": "a"}\n')], 3.0),
    "no header": ([HEADER], 3.0),
}


@pytest.mark.parametrize("name", SLOW)
def test_a_drip_or_silence_ends_in_time(name: str) -> None:
    pieces, pause = SLOW[name]
    with dripping(pieces, pause) as url:
        settings = OllamaSettings(host=url, timeout=0.4)
        with server.http(settings) as http:
            started = time.monotonic()
            with pytest.raises(httpx.ReadTimeout):
                server.call(http, "/api/show", {})
            with pytest.raises(httpx.ReadTimeout):
                list(server.stream(http, "/api/generate", {}))
        assert time.monotonic() - started < 2 * 2 * 0.4


def test_a_long_answer_of_timely_lines_is_read_to_its_end() -> None:
    pieces = [CHUNKED, *(chunk(b'{"n": 1}\n') for _ in range(12)), chunk(b"")]
    with dripping(pieces, 0.1) as url, server.http(OllamaSettings(host=url, timeout=0.5)) as http:
        for _ in range(2):  # a second request has its own time
            with http.stream("GET", "/") as reply:
                assert list(reply.iter_lines()) == ['{"n": 1}'] * 12


def test_a_slow_reader_is_not_held_against_the_server() -> None:
    pieces = [CHUNKED, chunk(b'{"n": '), chunk(b"1}"), chunk(b"\n"), chunk(b"")]
    with (
        dripping(pieces, 0.05) as url,
        server.http(OllamaSettings(host=url, timeout=0.5)) as http,
        http.stream("GET", "/") as reply,
    ):
        for _ in reply.iter_raw():
            time.sleep(0.6)


def test_a_proxy_of_the_environment_is_no_way_around_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with dripping(*SLOW["body"]) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        settings = OllamaSettings(host="http://192.0.2.1", timeout=0.3)
        with server.http(settings) as http, pytest.raises(httpx.ReadTimeout):
            http.get("/")
