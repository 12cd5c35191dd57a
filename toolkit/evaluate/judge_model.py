"""The model that judges, and the check that it runs on no hosted service."""

import urllib.parse
from dataclasses import dataclass

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.output_settings import OllamaSettings
from toolkit.ollama import server
from toolkit.ollama.address import is_loopback, server_address
from toolkit.ollama.failures import translate_errors

HOSTED = "ollama.com"


@dataclass(frozen=True)
class Judge:
    """A model that can judge: its name, the digest of its manifest (hex), and its positions, None if unknown."""

    model: str
    digest: str
    positions: int | None


def find_judge(config: Config) -> Judge:
    """Return the model of `evaluate.judge`, before anything is computed.

    Raises ToolkitError: exit code 2 for a server that is neither this machine nor `ollama.host`, or a hosted model;
    3 where no server answers or it does not hold the model.
    """
    settings, model = config.ollama, config.evaluate.judge.removeprefix("ollama:").strip()
    _check_place(settings)
    server.require(settings)
    name, _, tag = model.rpartition(":") if ":" in model.rpartition("/")[2] else (model, "", "latest")
    with server.http(settings) as http, translate_errors(settings, f"looking for the judge `{model}`"):
        digest = server.held(http).get(server.listed_name(name, tag))
        if digest is None:
            raise ToolkitError(
                f"the Ollama server at {server_address(settings)} does not hold the judge `{model}`",
                hint=f"`ollama pull {model}`, or name another in `evaluate.judge` (`ollama list`), or leave it empty",
                exit_code=MISSING,
            )
        shown = server.call(http, "/api/show", {"model": model})
    if shown.get("remote_host") or shown.get("remote_model"):
        raise ToolkitError(
            f"the judge `{model}` is not run by this server but by {shown.get('remote_host') or HOSTED}",
            hint="name a model that your own server runs: questions and answers must not leave your machines",
            exit_code=USAGE,
        )
    if server.listed_name(name, "") == server.listed_name(config.ollama.name or config.run.name, ""):
        console.warn_once(f"the judge `{model}` is the model that is judged: models prefer their own answers")
    info = shown.get("model_info")
    lengths = (
        [n for key, n in (info or {}).items() if key.endswith(".context_length")] if isinstance(info, dict) else []
    )
    return Judge(model, digest, next((n for n in lengths if type(n) is int and n > 0), None))


def _check_place(settings: OllamaSettings) -> None:
    url = server_address(settings)
    host = (urllib.parse.urlsplit(url).hostname or "").rstrip(".")
    if host == HOSTED or host.endswith(f".{HOSTED}"):
        raise ToolkitError(
            f"the judge would run on {url}, a hosted service",
            hint="run it on your own Ollama server: set `ollama.host` or OLLAMA_HOST to that, or unset them",
            exit_code=USAGE,
        )
    if not is_loopback(url) and not settings.host.strip():
        raise ToolkitError(
            f"the judge would run on another machine, {url}, which only OLLAMA_HOST names",
            hint=f"it reads held-out questions: set `ollama.host` to {url} if that machine may, or unset OLLAMA_HOST",
            exit_code=USAGE,
        )
