"""How an Ollama server fails, and what to do then: one table of its failures and our errors."""

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager

import httpx

from toolkit.core.errors import FAILED, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama.address import server_address


class ServerError(Exception):
    """A server's refusal: its text, and its HTTP status (200 within a stream)."""

    def __init__(self, body: str, status: int) -> None:
        super().__init__(body)
        self.status = status
        self.text = _said(body) or f"HTTP {status}"


def _said(body: str) -> str:
    """Return one line from a body: the `error` of JSON, the title of a proxy's HTML page."""
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        found = None
    if isinstance(found, dict) and "error" in found:
        error = found["error"]
        if isinstance(error, str) and error.startswith("{"):  # llama-server's own answer, passed on unchanged
            return _said(error)
        body = str(error.get("message", error) if isinstance(error, dict) else error)
    title = re.search(r"<title>(.*?)</title>", body, re.IGNORECASE | re.DOTALL)
    return " ".join((title[1] if title else re.sub(r"<[^<>]*>", " ", body) if _is_page(body) else body).split())[:400]


def _is_page(body: str) -> bool:
    return body.lstrip()[:9].lower().startswith(("<html", "<!doctype"))


_STORE = "its OLLAMA_MODELS, by default ~/.ollama/models of the user that runs it"

# What a refusal says → what to do. The first match counts.
HINTS = (
    (r"no space left|disk quota exceeded|not enough space|disk is full",
     f"free space on the server's disk: it keeps models in {_STORE}; then run the same command again"),
    (r"permission denied|read-only file system|operation not permitted",
     f"let the server write where it keeps models: {_STORE}"),
    (r"more system memory|out of memory|unable to allocate|cudamalloc|insufficient memory",
     "free memory on the server, or lower `ollama.num_ctx`, or serve a smaller quantization with `export.default`"),
    (r"server busy|maximum pending requests", "wait until it has answered others, then run the same command again"),
    (r"exceeds? the (available )?context|context (length|size|window)|input length",
     "ask a shorter question, or raise `ollama.num_ctx` and run `toolkit register`"),
    (r"model .*not found", "`toolkit status` says what the server holds; `toolkit register` makes the model"),
    (r"unsupported|unknown (model )?architecture|llama-server|llama-quantize|runner",
     "the server's own log says more; a newer Ollama may support the model"),
    (r"digest|blob|no such file|gguf|tensor|magic|offset|eof",
     "run the same command again; if it still fails, write the file again with `toolkit export --force`"),
)  # fmt: skip
STATUS_HINTS = {
    401: "set OLLAMA_API_KEY to the key that the server expects",
    403: "set OLLAMA_API_KEY to the key that the server expects, or allow this machine in its OLLAMA_ORIGINS",
    429: "wait until it has answered others, then run the same command again",
}


def _refusal(exc: ServerError, url: str, doing: str) -> ToolkitError:
    if exc.status == 413:
        return ToolkitError(
            f"a proxy in front of the Ollama server at {url} refused the size of the request while {doing}: HTTP 413",
            hint="raise the proxy's limit (nginx: `client_max_body_size 0;`), or give the server's own address in "
            "`ollama.host` or OLLAMA_HOST; nothing is wrong with the file",
        )
    if exc.status in (502, 503, 504) and not re.search(HINTS[3][0], exc.text, re.IGNORECASE):
        return ToolkitError(
            f"a proxy in front of the Ollama server at {url} got no answer from it while {doing}: {exc.text}",
            hint="check that the server still runs, then run the same command again",
        )
    found = next((hint for pattern, hint in HINTS if re.search(pattern, exc.text, re.IGNORECASE)), "")
    hint = STATUS_HINTS.get(exc.status) or found or "the server's own log says more"
    return ToolkitError(f"the Ollama server refused while {doing}: {exc.text}", hint=hint)


@contextmanager
def translate_errors(settings: OllamaSettings, doing: str) -> Iterator[None]:
    """Turn every way in which a server can fail during the block into a ToolkitError that says what was being done."""
    url = server_address(settings)
    try:
        yield
    except ServerError as exc:
        raise _refusal(exc, url, doing) from exc
    except httpx.TimeoutException as exc:
        raise ToolkitError(
            f"the Ollama server at {url} gave no complete answer within {settings.timeout:g} s while {doing}",
            hint="give it longer with `--set ollama.timeout=SECONDS`, or look at the server's own log",
        ) from exc
    except (httpx.TransportError, httpx.StreamError, ConnectionError) as exc:
        raise ToolkitError(
            f"the connection to the Ollama server at {url} broke while {doing}: "
            f"{' '.join(str(exc).split())[:400] or 'no reason given'}",
            hint="check that it still runs (`ollama ps`) and what its log says, then run the same command again",
            exit_code=FAILED,
        ) from exc
    except (ValueError, RecursionError) as exc:  # not JSON, not UTF-8, endless numbers
        raise ToolkitError(
            f"the server at {url} gave an answer that is not Ollama's while {doing}",
            hint="check `ollama.host` and OLLAMA_HOST: a proxy may be in front of the server",
        ) from exc
