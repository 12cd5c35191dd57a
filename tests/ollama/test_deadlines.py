"""Servers that drip: the time-out holds for a whole header and a whole line, however many bytes come in between."""

import time

import httpx
import pytest

from tests.support.faults import serving
from toolkit.ollama import deadlines

HEADER = b"HTTP/1.1 200 OK\r\nContent-Type: application/x-ndjson\r\nConnection: close\r\n"


def dripping(pieces, pause):
    def respond(handler):
        for piece in pieces:
            handler.wfile.write(piece)
            handler.wfile.flush()
            time.sleep(pause)
        return handler.reset()

    return serving(respond)


def chunk(text):
    return b"%x\r\n%s\r\n" % (len(text), text)


def drip(text):
    return [text[i : i + 1] for i in range(len(text))]


@pytest.mark.parametrize(
    "pieces",
    [
        drip(HEADER * 5),
        [HEADER + b"Content-Length: 50\r\n\r\n", *drip(b"x" * 50)],
        [HEADER + b"Transfer-Encoding: chunked\r\n\r\n", *(chunk(b"x") for _ in range(50))],
        [HEADER + b"\r\n", *drip(b'{"a": 1,\r\n' * 5)],
    ],
    ids=["header", "body", "chunks", "CR LF"],
)
def test_a_drip_does_not_stretch_the_time_out(pieces):
    with dripping(pieces, 0.05) as url, deadlines.enforce(httpx.Client(timeout=0.4, trust_env=False)) as client:
        with pytest.raises(httpx.ReadTimeout):
            client.get(url)
        with pytest.raises(httpx.ReadTimeout), client.stream("GET", url) as reply:
            list(reply.iter_lines())


def test_a_long_answer_of_timely_lines_is_read_to_its_end():
    pieces = [HEADER + b"Transfer-Encoding: chunked\r\n\r\n", *(chunk(b'{"n": 1}\n') for _ in range(12)), chunk(b"")]
    with dripping(pieces, 0.1) as url, deadlines.enforce(httpx.Client(timeout=0.5, trust_env=False)) as client:
        for _ in range(2):  # a second request has its own time
            with client.stream("GET", url) as reply:
                assert list(reply.iter_lines()) == ['{"n": 1}'] * 12


def test_a_proxy_of_the_environment_is_no_way_around_it(monkeypatch):
    with dripping(drip(HEADER * 5), 0.05) as url:
        monkeypatch.setenv("HTTP_PROXY", url)
        with deadlines.enforce(httpx.Client(timeout=0.3)) as client, pytest.raises(httpx.ReadTimeout):
            client.get("http://192.0.2.1/")
