"""Checks before a run spends hours: this machine, the uses of the trained model, the Ollama server."""

from typing import TYPE_CHECKING

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.network import is_offline
from toolkit.pipeline import STAGES, records
from toolkit.pipeline.usable import ends_with_adapter

if TYPE_CHECKING:
    from toolkit.core.config import Config
    from toolkit.core.output_settings import OllamaSettings
    from toolkit.core.run_folder import RunFolder


def look_first(config: "Config", folder: "RunFolder", stages: tuple[str, ...]) -> bool:
    """Let doctor look before hours are spent; a check that fails ends the run.

    Return whether the stages were asked about the trained model, and need not be asked once more: where the base
    is not here yet, or the adapter alone is wanted, there is more to say later.
    """
    if not stages:
        return False
    from toolkit.doctor import doctor as examine

    every = [*STAGES]
    now, later = records(stages), records(every[every.index(stages[-1]) + 1 :])
    checks = examine(config, folder, offline=is_offline(), stages=now, later=later)
    failed = [check for check in checks if check.ok is False]
    if failed:
        listed = "\n".join(f"  {check.name}: {check.found}" for check in failed)
        raise ToolkitError(
            f"this machine cannot do the configured run:\n{listed}", hint=failed[0].fix, exit_code=MISSING
        )
    asked = any(check.name in STAGES for check in checks)
    return asked and not config.train.allow_unexportable


def stops_at_adapter(config: "Config", folder: "RunFolder") -> bool:
    """Say whether a run is done with its adapter: for a base without export, train.allow_unexportable asks that."""
    why = ends_with_adapter(config, offline=is_offline())
    if why:
        console.warn(
            f"the run ends with the adapter in `{folder.adapter}`, as train.allow_unexportable asks: "
            f"it cannot be exported, validated or registered ({why})"
        )
    return bool(why)


def server_answers(settings: "OllamaSettings", command: str) -> bool:
    """Say whether there is a server to register with, later by `command`; a run without one succeeds nevertheless."""
    from toolkit.ollama import server
    from toolkit.ollama.address import server_address

    again = f"then `{command}`"
    try:
        url = server_address(settings)
    except ToolkitError as exc:
        console.warn(f"{exc.message}, so the model is not registered; {exc.hint}, {again}")
        return False
    if server.version(settings) is not None:
        return True
    console.warn(
        f"no Ollama server answers at {url}, so the model is not registered; "
        f"{server.before_start(url)}start one with `ollama serve`, {again}"
    )
    return False
