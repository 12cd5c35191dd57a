"""The Ollama server: which version answers, and requests over HTTP.

The package `ollama` is not used: importing it makes a client for whatever server the environment names, and may fail
there.
"""

import json
import os
import random
import re
import shutil
import ssl
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx

from toolkit.core.errors import MISSING, ToolkitError, missing_certificates
from toolkit.core.output_settings import OllamaSettings
from toolkit.core.parsing import parse_json
from toolkit.ollama import deadlines
from toolkit.ollama.address import is_loopback, server_address, warn_if_open
from toolkit.ollama.failures import ServerError

MINIMUM = (0, 30, 0)  # from this version on, a server runs llama.cpp's own
CONNECT_SECONDS = 2.0
QUICK_SECONDS = 10.0

Answer = TypeVar("Answer")

_RACED = re.compile(r"no such file|cannot find the (file|path)|not found|^(unexpected )?EOF$", re.IGNORECASE)


def version(settings: OllamaSettings) -> str | None:
    """Ask the server for its version; None if nothing answers within two seconds.

    Raises ToolkitError (exit 3) if what answers is not Ollama, or is older than 0.30. A build from source says 0.0.0
    whatever its age: it is accepted, since whoever builds a server knows what was built.
    """
    url = server_address(settings)
    try:
        with _http(url, httpx.Timeout(min(QUICK_SECONDS, settings.timeout), connect=CONNECT_SECONDS)) as http:
            reply = http.get("/api/version")
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        if "SSL" in str(exc) or "certificate" in str(exc).lower():
            raise _not_ollama(url, f"no TLS connection: {exc}") from None
        return None
    except httpx.TimeoutException:
        raise _not_ollama(url, "it accepts the connection but sends nothing") from None
    except httpx.TransportError as exc:
        raise _not_ollama(url, f"{type(exc).__name__}: {exc}") from None
    try:
        answer = reply.json()
    except (ValueError, RecursionError):
        answer = None
    if reply.status_code in (401, 403):
        raise ToolkitError(
            f"the server at {url} refuses access: HTTP {reply.status_code}",
            hint="set OLLAMA_API_KEY to the key that it expects",
            exit_code=MISSING,
        )
    found = answer.get("version") if isinstance(answer, dict) else None
    numbers = parse_version(found) if isinstance(found, str) else None
    if reply.status_code != 200 or not isinstance(found, str) or numbers is None:
        kind = reply.headers.get("content-type", "no content type").partition(";")[0]
        raise _not_ollama(url, f"HTTP {reply.status_code}, {kind}")
    if (0, 0, 0) < numbers < MINIMUM:
        raise ToolkitError(
            f"the Ollama server at {url} is version {found}; {'.'.join(map(str, MINIMUM))} or later is needed",
            hint="upgrade Ollama, then run the same command again",
            exit_code=MISSING,
        )
    return found


def _not_ollama(url: str, reason: str) -> ToolkitError:
    return ToolkitError(
        f"what answers at {url} is not an Ollama server: {reason}",
        hint="check `ollama.host` and OLLAMA_HOST: another program may have that port, or a proxy is in front of it",
        exit_code=MISSING,
    )


def parse_version(text: str) -> tuple[int, int, int] | None:
    """Return the three numbers that a version starts with (`0.34.1-rc2` → 0, 34, 1), or None."""
    match = re.match(r"v?(\d+)\.(\d+)\.(\d+)(?![\d.])", text.strip())
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def require(settings: OllamaSettings) -> str:
    """Return the version of a server that can be used; raises ToolkitError (exit 3) if none answers, as `version`."""
    found = version(settings)
    if found is None:
        raise ToolkitError(
            f"no Ollama server answers at {server_address(settings)}",
            hint=f"{before_start(server_address(settings))}start one with `ollama serve`, "
            "or say where it runs with OLLAMA_HOST or `ollama.host`",
            exit_code=MISSING,
        )
    return found


def before_start(url: str) -> str:
    """Return what stands before "start one with `ollama serve`": where that is, or what is to be installed first."""
    if not is_loopback(url):
        return "on that machine, "
    return "" if shutil.which("ollama") else "install Ollama (https://ollama.com/download), "


def rewrites(found: str) -> bool | None:
    """Say whether a server of this version stores a GGUF rewritten, under another digest; None if unknown.

    Up to 0.34.0 it runs `llama-quantize COPY` at create; a build from source does not say what it is.
    """
    numbers = parse_version(found)
    return None if numbers is None or numbers == (0, 0, 0) else numbers < (0, 34, 1)


def http(settings: OllamaSettings) -> httpx.Client:
    """Make a client of the configured server and time-out; it sends OLLAMA_API_KEY if there is one."""
    url = server_address(settings)
    warn_if_open(url)
    return _http(url, _timeout(settings))


def _timeout(settings: OllamaSettings) -> httpx.Timeout:
    return httpx.Timeout(settings.timeout, connect=min(QUICK_SECONDS, settings.timeout))


def _http(url: str, timeout: httpx.Timeout) -> httpx.Client:
    key = os.environ.get("OLLAMA_API_KEY")
    with _environment(url):
        return httpx.Client(
            base_url=url,
            timeout=timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            trust_env=not is_loopback(url),  # no proxy of the environment between us and our own machine
            verify=_certificates(url),
            event_hooks={"response": [deadlines.enforce]},
        )


def _certificates(url: str) -> ssl.SSLContext | bool:
    """Return the certificates to trust: those that SSL_CERT_FILE and SSL_CERT_DIR name count for loopback too."""
    if url.startswith("https://"):
        return httpx.create_ssl_context()
    # A proxy may stand before another machine. To our own there is no TLS: reading certificates would take 0.04 s.
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if is_loopback(url) else True


@contextmanager
def _environment(url: str) -> Iterator[None]:
    """Say which part of the environment prevents a client: a proxy, or a file of certificates."""
    try:
        yield
    except (ImportError, ValueError, httpx.InvalidURL, OSError) as exc:
        reason = missing_certificates() or " ".join(str(exc).split())
        raise ToolkitError(
            f"no connection to {url} can be made in this environment: {reason}",
            hint="correct or unset ALL_PROXY, HTTP_PROXY, HTTPS_PROXY, NO_PROXY, SSL_CERT_FILE and SSL_CERT_DIR; "
            f"`NO_PROXY={urllib.parse.urlsplit(url).hostname}` bypasses a proxy",
            exit_code=MISSING,
        ) from None


def retry_on_race(ask: Callable[[], Answer]) -> Answer:
    """Call; for about a second call again while it fails in a way that another client's change of the store causes.

    To find any name Ollama lists its manifests, then looks at each. One that was deleted in between fails the call:
    with HTTP 500, 400 or `model not found`, even if the call's own model is there. One that is
    being written reads as EOF (manifest/manifest.go, `Manifests` and `WriteManifest`).
    """
    for pause in (0.05, 0.1, 0.2, 0.4):
        try:
            return ask()
        except ServerError as exc:
            if not _RACED.search(exc.text):
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))
    return ask()


def request(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Send JSON once and return the reply; raises ServerError for one that is not HTTP 200."""
    reply = http.request(method, path, json=body)
    if reply.status_code != 200:
        raise ServerError(reply.text, reply.status_code)
    return reply


def call(http: httpx.Client, path: str, body: dict[str, Any] | None = None, method: str = "POST") -> dict[str, Any]:
    """Send JSON and return the JSON object that answers, empty for no body; raises what `translate_errors` translates.

    It may be sent more than once (`retry_on_race`).
    """

    def ask() -> dict[str, Any]:
        reply = request(http, method, path, body)
        answer = reply.json() if reply.content else {}
        if not isinstance(answer, dict):
            raise json.JSONDecodeError("not an object", reply.text, 0)
        if "error" in answer:
            raise ServerError(str(answer["error"]), reply.status_code)
        return answer

    return retry_on_race(ask)


def stream(http: httpx.Client, path: str, body: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Send JSON and yield the JSON objects that answer, one a line; raises what `translate_errors` translates."""
    with http.stream("POST", path, json=body) as reply:
        if reply.status_code != 200:
            reply.read()
            raise ServerError(reply.text, reply.status_code)
        for line in filter(None, reply.iter_lines()):
            step = parse_json(line, data=True)
            if not isinstance(step, dict):
                raise json.JSONDecodeError("not an object", line, 0)
            if "error" in step:
                raise ServerError(line, reply.status_code)
            yield step


def held(http: httpx.Client) -> dict[str, str]:
    """Return what the server holds: `name:tag` in lower case (names ignore case) → manifest digest (hex)."""
    listed = call(http, "/api/tags", method="GET").get("models")
    if listed is not None and not isinstance(listed, list):
        raise json.JSONDecodeError("no list of models", str(listed)[:80], 0)
    names = [(model.get("model"), model.get("digest")) for model in listed or [] if isinstance(model, dict)]
    return {name.lower(): str(digest) for name, digest in names if isinstance(name, str)}


def listed_name(name: str, tag: str) -> str:
    """Return `name:tag` as the server lists it: lower case here, default registry and namespace left out."""
    short = name.lower().removeprefix("registry.ollama.ai/")
    return f"{short.removeprefix('library/')}:{tag.lower()}"
