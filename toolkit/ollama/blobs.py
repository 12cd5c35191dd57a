"""Requests to the server's store: blobs, models, names. All raise what `translate_errors` translates."""

import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any

import httpx

from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.ollama import server
from toolkit.ollama.failures import ServerError
from toolkit.ollama.modelfile import Modelfile

CHUNK = 1 << 20
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds before an upload that broke off is tried again
GATEWAY = (502, 503, 504)  # from a proxy that lost the server: the connection behind it broke


def has_blob(http: httpx.Client, digest: str) -> bool:
    """Say whether the server has a blob; `digest` is a SHA-256 in hex."""
    status = http.head(f"/api/blobs/sha256:{digest}").status_code
    if status not in (200, 404):
        raise ServerError(f"HTTP {status} when asked for a blob", status)
    return status == 200


def upload(http: httpx.Client, path: Path, digest: str) -> bool:
    """Send a GGUF file as a blob unless the server has it; say whether it was sent.

    `digest` is its SHA-256 (hex) from the manifest: the file is not hashed here; the server hashes and compares it. A
    connection that breaks is tried again a few times; Ollama keeps nothing of a broken upload, so each starts over.
    """
    for number, pause in enumerate((*PAUSES, None), 1):
        try:
            if has_blob(http, digest):
                return number > 1
            _send(http, path, digest)
            return True
        except httpx.TransportError as exc:
            reason = f"{type(exc).__name__} {exc}".strip()
            if pause is None:
                raise ToolkitError(
                    f"the upload of `{path.name}` broke off {number} times: {reason}",
                    hint="check that the server still runs, what its log says, and whether a proxy limits "
                    "a request's size or time; then run the same command again",
                ) from exc
            console.warn(f"the upload of `{path.name}` broke off ({reason}); next try in {console.duration(pause)}")
            time.sleep(pause)
    raise AssertionError  # the last round returns or raises


def _send(http: httpx.Client, path: Path, digest: str) -> None:
    total = path.stat().st_size
    with path.open("rb") as file, console.progress(f"upload {path.name}", total, "B") as progress:
        reply = http.post(
            f"/api/blobs/sha256:{digest}", content=_chunks(file, progress), headers={"Content-Length": str(total)}
        )
    if reply.status_code in GATEWAY:
        raise httpx.RemoteProtocolError(f"HTTP {reply.status_code}")
    if reply.status_code not in (200, 201):
        raise ServerError(reply.text, reply.status_code)


def _chunks(file: IO[bytes], progress: console.Progress) -> Iterator[bytes]:
    started = time.monotonic()
    while chunk := file.read(CHUNK):
        yield chunk
        seconds = max(time.monotonic() - started, 1e-6)
        progress.advance(len(chunk), f"{console.size((progress.done + len(chunk)) / seconds)}/s")


def create(http: httpx.Client, model: str, filename: str, digest: str, spec: Modelfile) -> None:
    """Make a model from an uploaded GGUF; raises ToolkitError if the server's report ends without `success`."""
    body = {
        "model": model,
        "files": {filename: f"sha256:{digest}"},
        "template": spec.template,
        "system": spec.system,
        "parameters": spec.parameters,
        "license": list(spec.licenses),
        "stream": True,
    }
    status = server.retry_on_race(lambda: _created(http, body))
    if status != "success":
        raise ToolkitError(
            f"the Ollama server stopped at `{status or 'nothing'}` while creating `{model}`",
            hint="the server's own log says more; run the same command again",
        )


def _created(http: httpx.Client, body: dict[str, Any]) -> str:
    """Return the last status of the server's report."""
    status = ""
    for step in server.stream(http, "/api/create", body):
        status = str(step.get("status", ""))
    return status


def copy(http: httpx.Client, source: str, destination: str) -> None:
    """Give a model a second name, which is overwritten if it is taken."""
    server.call(http, "/api/copy", {"source": source, "destination": destination})


def delete(http: httpx.Client, model: str) -> None:
    """Delete a name; it may be gone already."""
    try:
        server.call(http, "/api/delete", {"model": model}, method="DELETE")
    except ServerError as exc:
        if exc.status != 404:
            raise


def made_by(http: httpx.Client, model: str) -> str:
    """Return the run that a model on the server names as its maker; empty if it was not made with this toolkit."""
    return maker(str(server.call(http, "/api/show", {"model": model}).get("license") or ""))


def foreign(http: httpx.Client, name: str, tags: Iterable[str]) -> list[str]:
    """Return those tags, of tags that the server holds, whose model this toolkit did not make."""
    return [tag for tag in tags if not made_by(http, server.listed_name(name, tag))]


def refuse_foreign(name: str, tags: Iterable[str]) -> None:
    """Raise ToolkitError if there are tags of other makers, which nobody named for replacement."""
    models = [server.listed_name(name, tag) for tag in tags]
    if models:
        raise ToolkitError(
            f"the Ollama server already has {', '.join(f'`{model}`' for model in models)}, not made with this toolkit",
            hint="choose another `ollama.name`, or run `toolkit register` with "
            f"`{' '.join(f'--replace {model}' for model in models)}`, which keeps a copy",
        )


# The first line of our models' licence, by which a model on a server is known to be ours: /api/show reveals it.
MARKER = "Made with toolkit, run "


def maker(licence_text: str) -> str:
    """Return the run (name and id) that a model's licence names, or an empty string if this toolkit did not make it."""
    first, _, _ = licence_text.partition("\n")
    return first.removeprefix(MARKER).strip() if first.startswith(MARKER) else ""
