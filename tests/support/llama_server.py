"""Start llama.cpp's own server, which an Ollama server brings with it, on a free loopback port."""

import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.support.ollama_server import free_port


def program_of(ollama: Path) -> Path:
    """Where an Ollama server has its llama-server."""
    return ollama.parents[1] / "lib" / "ollama" / "llama-server"


@contextmanager
def llama_server(program: Path, gguf: Path) -> Iterator[httpx.Client]:
    """llama.cpp's own server, which runs a GGUF's chat template in its own Jinja."""
    port = free_port()
    options = ["--jinja", "--port", str(port), "--host", "127.0.0.1", "-c", "1024", "-np", "1", "-t", "1", "--offline"]
    process = subprocess.Popen(
        [str(program), "--model", str(gguf), *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30, trust_env=False) as http:
            for _ in range(300):
                try:
                    if http.get("/health").status_code == 200:
                        break
                except httpx.TransportError:
                    pass
                time.sleep(0.1)
            yield http
    finally:
        process.kill()
        process.wait()
