"""Rollback: `latest` and `previous` change places."""

from collections.abc import Collection
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import httpx

from toolkit.core.config import Config
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.output_settings import QUANTIZATIONS
from toolkit.ollama import blobs, server, transaction
from toolkit.ollama.address import server_address
from toolkit.ollama.failures import translate_errors
from toolkit.ollama.transaction import LATEST, PREVIOUS, Transaction
from toolkit.register import model_spec as specs
from toolkit.register import verify


def roll_back(config: Config, *, dry_run: bool = False, replace: Collection[str] = ()) -> dict[str, Any]:
    """Give `name:latest` the model that `name:previous` holds, and the other way round; a second call undoes it.

    The former model must answer first. A quantization's tag that held the same model as `latest` follows it if the
    former model is of that quantization too. Returns name, and for each changed tag its digest and the run that made
    it; with `dry_run` what they would be. Raises ToolkitError (exit 3) if there is no former model or server. Raises it
    too for a `latest` that is not ours and for another machine's unfinished registration, unless `replace` names them.
    Then nothing has changed.
    """
    name = specs.model_name(config)
    named = specs.tags_to_replace(name, replace, [LATEST])
    server.require(config.ollama)
    doing = translate_errors(config.ollama, f"rolling back `{name}`")
    with server.http(config.ollama) as http, doing, _begun(http, name, config, dry_run, named) as work:
        before = transaction.user_tags(work.held())
        if PREVIOUS not in before:
            raise ToolkitError(
                f"the Ollama server has no previous model `{name}:{PREVIOUS}`",
                hint="there is one once a second version is registered",
                exit_code=MISSING,
            )
        if LATEST in before and LATEST not in named:
            blobs.refuse_foreign(name, blobs.foreign(http, name, [LATEST]))
        answered: dict[str, Any] = {}
        with translate_errors(config.ollama, f"asking the previous model `{name}:{PREVIOUS}`"):
            if not dry_run:
                answered = verify.smoke(http, f"{name}:{PREVIOUS}", config.validation, unload=False)
        sources = {LATEST: f"{name}:{PREVIOUS}"}
        if LATEST in before:
            sources[PREVIOUS] = f"{name}:{LATEST}"
            if _file_type(http, f"{name}:{PREVIOUS}") == _file_type(http, f"{name}:{LATEST}"):
                same = [tag for tag, digest in before.items() if digest == before[LATEST] and tag not in sources]
                same = [tag for tag in same if tag.upper() in QUANTIZATIONS]  # a user's own tag is a copy to keep
                sources |= {tag: f"{name}:{PREVIOUS}" for tag in same}

        def guard(held: dict[str, str]) -> None:
            if held != before:
                raise ToolkitError(
                    f"another program changed `{name}` meanwhile", hint="check with `toolkit status`, then try again"
                )

        runs = {tag: blobs.made_by(http, source) for tag, source in sources.items()}
        listed = {tag: before[source.rpartition(":")[2]] for tag, source in sources.items()}
        if not dry_run:
            transaction.commit(work, sources, copies={}, guard=guard)
        tags = {tag: {"digest": listed[tag], "run": runs[tag]} for tag in sources}
    where = {"name": name, "server": server_address(config.ollama), "dry_run": dry_run}
    return {**where, "tags": tags, "answer": answered.get("answer", "")}


def _begun(
    http: httpx.Client, name: str, config: Config, dry_run: bool, replace: Collection[str]
) -> AbstractContextManager[Transaction]:
    if dry_run:  # not even what a dead call left is deleted
        return nullcontext(Transaction(http, name, ""))
    return transaction.begin(http, name, config.ollama.timeout, replace=replace)


def _file_type(http: httpx.Client, model: str) -> object:
    """Return the number of a GGUF's quantization."""
    return (server.call(http, "/api/show", {"model": model}).get("model_info") or {}).get("general.file_type")
