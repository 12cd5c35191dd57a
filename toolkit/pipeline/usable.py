"""Whether the later stages can use the model that will be trained: they are asked before training starts."""

from typing import TYPE_CHECKING

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.stage import Check
from toolkit.pipeline import STAGES, stage

if TYPE_CHECKING:
    from toolkit.core.config import Config


def refusal(config: "Config", *, offline: bool) -> Check | None:
    """Ask every stage whether it could use the model that these settings train; return the first refusal.

    Small files of a hub id are fetched for it, unless `offline`, and no weight is read.
    """
    found = (stage(name).foresee(config, offline) for name in STAGES)
    return next((check for check in found if check is not None and check.ok is False), None)


def check_usable(config: "Config", *, offline: bool, adapter_alone: bool = True) -> None:
    """Raise ToolkitError (exit 3) where a model that these settings train could not be used.

    Where an `adapter_alone` is of use, train.allow_unexportable makes that a warning.
    """
    found = refusal(config, offline=offline)
    if found is None:
        return
    if adapter_alone and config.train.allow_unexportable:
        console.warn(f"the trained model cannot be exported: {found.found}")
        return
    raise ToolkitError(f"the trained model cannot be exported: {found.found}", hint=found.fix, exit_code=MISSING)


def ends_with_adapter(config: "Config", *, offline: bool) -> str:
    """Say why training is the last stage, as train.allow_unexportable asks; empty where others follow."""
    found = refusal(config, offline=offline) if config.train.allow_unexportable else None
    return found.found if found is not None else ""
