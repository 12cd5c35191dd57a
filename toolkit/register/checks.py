"""What the doctor asks about Ollama."""

from toolkit.core.config import Config
from toolkit.core.stage import Check
from toolkit.ollama import server
from toolkit.ollama.address import server_address


def ollama(config: Config, *, needed: bool) -> Check:
    """Check that an Ollama server answers and is new enough; without one, the check fails only if `needed`."""
    url = server_address(config.ollama)
    if server.version(config.ollama) is None:
        fix = (
            "register later: start a server with `ollama serve`, or say where it runs with OLLAMA_HOST or `ollama.host`"
        )
        found = f"no server answers at {url}"
        return (
            Check("ollama", False, found, fix.removeprefix("register later: "))
            if needed
            else Check("ollama", None, found, fix)
        )
    return Check("ollama", True, f"version {server.require(config.ollama)} at {url}", "")
