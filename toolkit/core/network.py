"""Whether the network is forbidden, and by what: `--offline`, or the variables of the hub's own library."""

import os

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


def _set(name: str) -> bool:
    return os.environ.get(name, "").upper() in _YES
