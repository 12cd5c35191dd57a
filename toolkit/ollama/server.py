"""The Ollama server: where it is, which version answers, and one table from its failures to ours."""

import ipaddress
import json
import os
import random
import re
import time
import urllib.parse
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import httpx
import ollama
from pydantic import ValidationError

from toolkit.core import console
from toolkit.core.errors import FAILED, MISSING, USAGE, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import deadlines

MINIMUM = (0, 30, 0)  # from here on a server runs llama.cpp's own
CONNECT_SECONDS = 2.0
QUICK_SECONDS = 10.0

Answer = TypeVar("Answer")

_RACED = re.compile(r"no such file|cannot find the (file|path)|not found|^(unexpected )?EOF$", re.IGNORECASE)
_warned: set[str] = set()


def address(settings: OllamaSettings) -> str:
    """Return the server's address as `scheme://host:port[/path]`.

    `ollama.host`, else OLLAMA_HOST, else 127.0.0.1:11434, in the grammar of the `ollama` client: without a scheme the
    port is 11434, with one it is the scheme's own. The unspecified addresses that a server binds to mean loopback here.
    Raises ToolkitError (exit 2) for what is no address.
    """
    text = (settings.host or os.environ.get("OLLAMA_HOST", "")).strip()
    scheme, separator, rest = text.partition("://")
    if not separator:
        scheme, rest = "http", text
    default_port = {"http": 80 if separator else 11434, "https": 443}.get(scheme)
    try:
        parts = urllib.parse.urlsplit(f"{scheme}://{rest}")
        host, port, path = parts.hostname or "127.0.0.1", parts.port, parts.path.strip("/")
    except ValueError:
        host, port, path, default_port = "", None, "", None
    if default_port is None or not re.fullmatch(r"[0-9A-Za-z._:%-]+", host):
        raise ToolkitError(
            f"`{text}` is not the address of an Ollama server",
            hint="write `ollama.host` or OLLAMA_HOST as host, host:port, http://host:port or https://host",
            exit_code=USAGE,
        )
    try:
        number = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if number.is_unspecified:
            host = "127.0.0.1" if number.version == 4 else "::1"
        if number.version == 6:
            host = f"[{host}]"
    return f"{scheme}://{host}:{port or default_port}" + (f"/{path}" if path else "")


def is_loopback(url: str) -> bool:
    """Say whether an address is this machine's own."""
    host = urllib.parse.urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def version(settings: OllamaSettings) -> str | None:
    """Ask the server for its version; None where nothing answers, within two seconds.

    Raises ToolkitError (exit 3) if what answers is not Ollama, or is older than 0.30. A build from source says 0.0.0
    whatever its age: it is accepted, since whoever builds a server knows what was built.
    """
    url = address(settings)
    try:
        with _http(url, httpx.Timeout(min(QUICK_SECONDS, settings.timeout), connect=CONNECT_SECONDS)) as http:
            reply = http.get("/api/version")
    except (httpx.ConnectError, httpx.ConnectTimeout) as exc:
        if "SSL" in str(exc) or "certificate" in str(exc).lower():
            raise _not_ollama(url, f"no TLS connection: {exc}") from None
        return None
    except httpx.TimeoutException:
        raise _not_ollama(url, "it takes the connection but says nothing") from None
    except httpx.TransportError as exc:
        raise _not_ollama(url, f"{type(exc).__name__}: {exc}") from None
    try:
        answer = reply.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        answer = None
    if reply.status_code in (401, 403):
        raise ToolkitError(
            f"the server at {url} does not let us in: HTTP {reply.status_code}",
            hint="set OLLAMA_API_KEY to the key that it wants",
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
        hint="check `ollama.host` and OLLAMA_HOST: another program may have that port, or a proxy stands before it",
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
            f"no Ollama server answers at {address(settings)}",
            hint="start one with `ollama serve`, or say where it runs with OLLAMA_HOST or `ollama.host`",
            exit_code=MISSING,
        )
    return found


def rewrites(found: str) -> bool | None:
    """Say whether a server of this version stores a GGUF rewritten, under another digest; None where it is not known.

    Up to 0.34.0 it runs `llama-quantize COPY` at create; a build from source does not say what it is.
    """
    numbers = parse_version(found)
    return None if numbers is None or numbers == (0, 0, 0) else numbers < (0, 34, 1)


def client(settings: OllamaSettings) -> ollama.Client:
    """Make an `ollama.Client` for the configured server and time-out; it sends OLLAMA_API_KEY where there is one."""
    url = address(settings)
    _warn_if_open(url)
    return ollama.Client(url, timeout=_timeout(settings), **_options(url))


def http(settings: OllamaSettings) -> httpx.Client:
    """Make a plain HTTP client for what the `ollama` client does not offer, with the same address and key."""
    url = address(settings)
    _warn_if_open(url)
    return _http(url, _timeout(settings))


def _timeout(settings: OllamaSettings) -> httpx.Timeout:
    return httpx.Timeout(settings.timeout, connect=min(QUICK_SECONDS, settings.timeout))


def _http(url: str, timeout: httpx.Timeout) -> httpx.Client:
    key = os.environ.get("OLLAMA_API_KEY")
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    return httpx.Client(base_url=url, timeout=timeout, headers=headers, **_options(url))


def _options(url: str) -> dict[str, Any]:
    """Return what both clients share."""
    return {
        "trust_env": not is_loopback(url),  # no proxy of the environment between us and our own machine
        # SSL_CERT_FILE and SSL_CERT_DIR name whose certificates count for loopback too.
        "verify": httpx.create_ssl_context() if url.startswith("https://") else True,
        "event_hooks": {"response": [deadlines.enforce]},
    }


def _warn_if_open(url: str) -> None:
    if url.startswith("http://") and not is_loopback(url) and url not in _warned:
        _warned.add(url)
        what = "model, prompts and OLLAMA_API_KEY" if os.environ.get("OLLAMA_API_KEY") else "model and prompts"
        console.warn(f"{url} is another machine and the connection is not encrypted: {what} can be read on the way")


def retry_on_race(ask: Callable[[], Answer]) -> Answer:
    """Call; for about a second call again while it fails as it does beside another client's change of the store.

    To find any name Ollama lists its manifests, then looks at each. One that was deleted in between fails the call:
    with HTTP 500, 400 or `model not found`, whichever model that was and though the call's own is there. One that is
    being written reads as EOF (manifest/manifest.go, `Manifests` and `WriteManifest`).
    """
    for pause in (0.05, 0.1, 0.2, 0.4):
        try:
            return ask()
        except ollama.ResponseError as exc:
            if not _RACED.search(exc.error.strip()):
                raise
        time.sleep(pause * random.uniform(0.5, 1.5))
    return ask()


def request(http: httpx.Client, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    """Send JSON once and return the reply; raises ResponseError for one that is not HTTP 200."""
    reply = http.request(method, path, json=body)
    if reply.status_code != 200:
        raise ollama.ResponseError(reply.text, reply.status_code)
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
            raise ollama.ResponseError(str(answer["error"]), reply.status_code)
        return answer

    return retry_on_race(ask)


def held(client: ollama.Client) -> dict[str, str]:
    """Return what the server holds: `name:tag` in lower case (case makes no other name) → manifest digest (hex)."""
    return {str(model.model).lower(): str(model.digest) for model in client.list().models}


def listed_name(name: str, tag: str) -> str:
    """Return `name:tag` as the server lists it: lower case here, default registry and namespace left out."""
    short = name.lower().removeprefix("registry.ollama.ai/")
    return f"{short.removeprefix('library/')}:{tag.lower()}"


@contextmanager
def translate_errors(settings: OllamaSettings, doing: str) -> Iterator[None]:
    """Turn every way in which a server can fail during the block into a ToolkitError that says what was being done."""
    url = address(settings)
    try:
        yield
    except ollama.ResponseError as exc:
        raise ToolkitError(
            f"the Ollama server refused while {doing}: {_one_line(exc.error)}",
            hint="the server's own log says more; if the message names a file or digest, run `toolkit export` again",
        ) from exc
    except httpx.TimeoutException as exc:
        raise ToolkitError(
            f"the Ollama server at {url} gave no whole answer within {settings.timeout:g} s while {doing}",
            hint="give it longer with `--set ollama.timeout=SECONDS`, or look at the server's own log",
        ) from exc
    except (httpx.TransportError, httpx.StreamError, ConnectionError) as exc:
        raise ToolkitError(
            f"the connection to the Ollama server at {url} broke while {doing}: {_one_line(str(exc))}",
            hint="see whether it still runs (`ollama ps`) and what its log says, then run the same command again",
            exit_code=FAILED,
        ) from exc
    except (json.JSONDecodeError, UnicodeDecodeError, ValidationError) as exc:
        raise ToolkitError(
            f"the server at {url} answered something that is not Ollama's while {doing}",
            hint="check `ollama.host` and OLLAMA_HOST: a proxy may stand before the server",
        ) from exc


def _one_line(text: str) -> str:
    return " ".join(text.split())[:400] or "no reason given"
