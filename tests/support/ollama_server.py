"""Find and start a real Ollama server for tests: on a free loopback port, with its own models and HOME."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import ollama

from tests.support import outside

VERSION = "v0.34.1"
GENERATIONS = ("v0.34.0", "v0.34.1", "v0.34.4")


def install_script() -> Path:
    """Return the script that builds a server: `bash SCRIPT VERSION` prints the path of its `ollama` last."""
    return outside.place("TOOLKIT_TEST_OLLAMA_INSTALL", "ollama/install.sh")


def find_ollama() -> Path | None:
    """TOOLKIT_TEST_OLLAMA, else what the install script built (or builds, under CI=true), else PATH."""
    named = os.environ.get("TOOLKIT_TEST_OLLAMA")
    if named:
        return Path(named)
    builds = Path(os.environ.get("OLLAMA_BUILDS", Path.home() / ".cache" / "ollama-builds"))
    script = install_script()
    if script.is_file() and ((builds / VERSION / ".built").is_file() or os.environ.get("CI") == "true"):
        answer = subprocess.run(["bash", str(script), VERSION], capture_output=True, text=True, check=True)
        return Path(answer.stdout.split()[-1])
    found = shutil.which("ollama")
    return Path(found) if found else None


@dataclass
class OllamaServer:
    """A running server; `kill` and `start` may be called in between."""

    binary: Path
    root: Path
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def version(self) -> str:
        """What it is: a build from source calls itself 0.0.0."""
        named = os.environ.get("TOOLKIT_TEST_OLLAMA_VERSION", "").removeprefix("v")
        said = str(httpx.get(f"{self.url}/api/version", timeout=5, trust_env=False).json()["version"])
        return named or (said if said != "0.0.0" else VERSION.removeprefix("v"))

    @property
    def environment(self) -> dict[str, str]:
        """For the server and for `ollama` commands against it: nothing of the user's, no proxy, no network."""
        kept = {key: value for key, value in os.environ.items() if key in ("PATH", "LANG", "TMPDIR", "LD_LIBRARY_PATH")}
        return {
            **kept,
            "HOME": str(self.root / "home"),
            "OLLAMA_MODELS": str(self.root / "models"),
            "OLLAMA_HOST": f"127.0.0.1:{self.port}",
            "OLLAMA_NO_CLOUD": "1",
            "LLAMA_ARG_THREADS": "1",  # those of a small model would wait for each other longer than they compute
            "NO_PROXY": "127.0.0.1,localhost",
        }

    def start(self) -> None:
        (self.root / "home").mkdir(parents=True, exist_ok=True)
        with (self.root / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [self.binary, "serve"], env=self.environment, stdout=log, stderr=log, start_new_session=True
            )
        for _ in range(300):
            if self.process.poll() is not None:
                break
            try:
                httpx.get(f"{self.url}/api/version", timeout=5, trust_env=False).raise_for_status()
                return
            except httpx.HTTPError:
                time.sleep(0.1)
        log_text = (self.root / "server.log").read_text(errors="replace")[-2000:]
        self.kill()
        raise RuntimeError(f"the Ollama server did not start:\n{log_text}")

    def kill(self) -> None:
        """Kill the server and the llama-server processes that it started: they share its session."""
        if self.process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 9)
        self.process.wait()
        self.process = None

    def run(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run an `ollama` command against this server."""
        return subprocess.run(
            [str(self.binary), *arguments], env=self.environment, cwd=cwd, capture_output=True, text=True, timeout=120
        )


def library(url: str) -> ollama.Client:
    """The client that users' scripts have; no proxy of the environment stands before it."""
    return ollama.Client(url, trust_env=False, verify=httpx.create_ssl_context() if url.startswith("https") else False)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def ollama_server(binary: Path, root: Path) -> Iterator[OllamaServer]:
    """Run a server below `root`, and kill it at the end."""
    server = OllamaServer(binary, root, free_port())
    server.start()
    try:
        yield server
    finally:
        server.kill()
