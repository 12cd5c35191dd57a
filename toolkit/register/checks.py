"""What the doctor asks about Ollama."""

from toolkit.core.config import Config
from toolkit.core.stage import Check
from toolkit.ollama import server
from toolkit.ollama.address import server_address


def ollama(config: Config, *, needed: bool) -> Check:
    """Check that an Ollama server answers and is new enough; without one, the check fails only if `needed`."""
    url = server_address(config.ollama)
    if server.version(config.ollama) is None:
        found = f"no server answers at {url}"
        fix = (
            f"{server.before_start(url)}start one with `ollama serve`, "
            "or say where it runs with OLLAMA_HOST or `ollama.host`"
        )
        return Check("ollama", False, found, fix) if needed else Check("ollama", None, found, f"register later: {fix}")
    return Check("ollama", True, f"version {server.require(config.ollama)} at {url}", "")


def context(config: Config) -> list[Check]:
    """Say if the context that the settings state is shorter than the prompts that training may see."""
    stated, needed = config.ollama.num_ctx, config.train.max_length
    if not stated or stated >= needed:
        return []
    found = f"num_ctx {stated:,} is less than train.max_length {needed:,}: `register` refuses longer held-out prompts"
    return [Check("context", None, found, "leave out `ollama.num_ctx`: it is then computed")]
