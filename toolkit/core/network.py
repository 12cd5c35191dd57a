"""Whether the network is forbidden, and by what: `--offline`, or the variables of the hub's own library; its proxy."""

import os
import urllib.parse

_HUB = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
_OPTION = "TOOLKIT_OFFLINE"  # in the environment, so that processes of a training say the same
_YES = ("1", "ON", "YES", "TRUE")  # as huggingface_hub reads them


def forbid() -> None:
    """Forbid the network from now on, as `--offline` asks; an Ollama server is still reached."""
    os.environ[_HUB[0]] = os.environ[_OPTION] = "1"


def is_offline() -> bool:
    """Tell whether the network is forbidden."""
    return any(map(_set, _HUB))


def forbidden_by() -> str:
    """Name what forbids the network: the option, or the variable that is set."""
    return next((name for name in _HUB if _set(name) and not _set(_OPTION)), "--offline")


def hub_proxy() -> str:
    """Name the variable whose proxy stands before the hub, empty if there is none. Its value may hold a password."""
    from urllib.request import proxy_bypass

    hub = urllib.parse.urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    if proxy_bypass(hub.hostname or ""):
        return ""
    names = (f"{hub.scheme}_proxy", f"{hub.scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY")
    return next((name for name in names if os.environ.get(name, "").strip()), "")


def _set(name: str) -> bool:
    return os.environ.get(name, "").upper() in _YES
