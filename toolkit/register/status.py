"""What the server holds under a run's name, and whether it is this run's."""

from typing import Any

import httpx

from toolkit.core.config import Config
from toolkit.core.manifest import Manifest
from toolkit.ollama import blobs, server, transaction
from toolkit.ollama.address import server_address
from toolkit.ollama.failures import translate_errors
from toolkit.ollama.transaction import LATEST, PREVIOUS, Transaction
from toolkit.register import model_spec as specs
from toolkit.register import verify


def lost(config: Config, figures: dict[str, Any]) -> str:
    """Say why the server's model is not the one that was registered last; empty if it is, or was rolled back.

    `figures` are those of the register stage. Raises ToolkitError if what answers is not Ollama; without a server
    (`server.version` is None) the figures are believed.
    """
    if server.version(config.ollama) is None:
        return ""
    name = specs.model_name(config)
    with server.http(config.ollama) as http, translate_errors(config.ollama, "looking for the model"):
        held = transaction.user_tags(Transaction(http, name, "").held())
    registered = figures["tags"][LATEST]["digest"]
    if LATEST not in held:
        return "the server does not hold the model"
    if registered in (held[LATEST], held.get(PREVIOUS)):
        return ""  # as `previous` it was rolled back on purpose: only `toolkit register` restores it
    return f"the server holds another model as `{name}:{LATEST}`"


def server_state(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Return the server's address and version, and for each tag of the name what it holds.

    Per tag: `state` in words, `digest` of its manifest (empty if the server has no such tag), `run` that made it,
    `stored_sha256` of the GGUF that the server runs, and `gguf_sha256` of the file that was uploaded, if it is this
    run's. Without a server `version` is None and there are no tags. Raises ToolkitError if what answers fails.
    """
    version = server.version(config.ollama)
    found: dict[str, Any] = {"server": server_address(config.ollama), "version": version, "tags": {}}
    if version is None:
        return found
    name = found["name"] = specs.model_name(config)
    record, export = manifest.stages.get("register"), manifest.stages.get("export")
    recorded = record.figures.get("tags", {}) if record else {}
    files = {file.sha256 for file in export.outputs if file.path.endswith(".gguf")} if export else set()
    with server.http(config.ollama) as http, translate_errors(config.ollama, "looking at its models"):
        held = transaction.user_tags(Transaction(http, name, "").held())
        expected = [LATEST, *(quantization.lower() for quantization in config.served)]
        for tag in dict.fromkeys([*expected, *recorded, *held]):
            found["tags"][tag] = _tag(http, name, tag, held, recorded, files)
    return found


def _tag(
    http: httpx.Client,
    name: str,
    tag: str,
    held: dict[str, str],
    recorded: dict[str, dict[str, Any]],
    files: set[str],
) -> dict[str, Any]:
    digest = held.get(tag, "")
    if not digest:
        return {"state": "not there", "digest": "", "run": "", "gguf_sha256": "", "stored_sha256": ""}
    shown = server.call(http, "/api/show", {"model": f"{name}:{tag}"})
    stored = verify.stored_digest(shown)
    run = blobs.maker(str(shown.get("license") or ""))
    ours = next((figures for figures in recorded.values() if figures["digest"] == digest), None)
    gguf = ours["gguf_sha256"] if ours else stored if stored in files else ""
    if ours and ours["stored_sha256"] != stored:
        words = "damaged: the server names a different file than the one that was proven"
    elif ours and gguf in files:
        words = "this run's" if recorded.get(tag, {}).get("digest") == digest else "this run's, rolled back"
    elif ours:
        words = "this run's, of an earlier export"
    elif gguf:
        words = "this run's file, of another registration"
    else:
        words = f"of run {run.partition(' ')[0]}" if run else "not made with toolkit"
    return {"state": words, "digest": digest, "run": run, "gguf_sha256": gguf, "stored_sha256": stored}
