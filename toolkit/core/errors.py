"""What can go wrong: one error type with a hint and an exit code, and one table for foreign exceptions."""

import errno
import os
from typing import Any

FAILED = 1
USAGE = 2
MISSING = 3
GATE = 4
INTERRUPTED = 130


class ToolkitError(Exception):
    """Say what was found and where (`message`), what to do next (`hint`), and the process's exit code.

    `details` is what a script wants to know besides; it goes into the JSON object only.
    """

    def __init__(
        self, message: str, *, hint: str = "", exit_code: int = FAILED, details: dict[str, Any] | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code
        self.details = details or {}


def _os_error(exc: OSError) -> ToolkitError:
    path = exc.filename if exc.filename is not None else "the output folder"
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ToolkitError(
            f"no permission to use `{path}`: {os.strerror(exc.errno)}",
            hint="change its permissions, or choose another folder with `--set run.folder=DIR`",
        )
    reason = exc.strerror or str(exc)
    return ToolkitError(f"{reason}: {path}", hint="check that the path exists and can be read")


def _disk_full(path: object) -> ToolkitError:
    return ToolkitError(
        f"the disk is full: {path}",
        hint="free some space and run the same command again; nothing half-written was kept",
    )


def _first_line(exc: BaseException) -> str:
    lines = [line.strip() for line in str(exc).splitlines() if line.strip()]
    return lines[0] if lines else type(exc).__name__


# How safetensors and torch.save report a full disk: as errors of their own, without an errno.
_SAID_OF_A_FULL_DISK = (
    "No space left on device (os error 28)",
    "fail at inline_container.cc",
    "PytorchStreamWriter failed",
)

_NO_REPOSITORY = (
    "the hub has no such model, or it is private",
    "check `model.base` for a typing error; for a private model run `hf auth login` first",
    MISSING,
)
_HUB_UNREACHABLE = (
    "the hub did not answer",
    "check the network, or set `model.base` to a local folder or GGUF file",
    MISSING,
)
_OUT_OF_MEMORY = (
    "out of memory",
    "halve `train.batch_size` and double `train.gradient_accumulation_steps`, or lower `train.max_length`",
    FAILED,
)
_NO_SERVER = (
    "no Ollama server answers",
    "start one with `ollama serve`, or set OLLAMA_HOST to where it runs",
    MISSING,
)

# What happened, what to do, exit code; by the names of an exception's classes, most derived first, so that no heavy
# library is imported to look. OSError stands apart: its errno decides.
_FOREIGN: dict[str, tuple[str, str, int]] = {
    "GatedRepoError": (
        "the base model is gated and this machine has no access to it",
        "ask for access on the model's page, run `hf auth login`, then run the same command again",
        MISSING,
    ),
    "RepositoryNotFoundError": _NO_REPOSITORY,
    "RevisionNotFoundError": _NO_REPOSITORY,
    "LocalEntryNotFoundError": _HUB_UNREACHABLE,
    "OfflineModeIsEnabled": _HUB_UNREACHABLE,
    "HfHubHTTPError": _HUB_UNREACHABLE,
    "OutOfMemoryError": _OUT_OF_MEMORY,
    "MemoryError": _OUT_OF_MEMORY,
    "SafetensorError": (
        "a weight file cannot be read",
        "the file is truncated or not safetensors: copy or download it again",
        FAILED,
    ),
    "ConnectError": _NO_SERVER,
    "ConnectionError": _NO_SERVER,
    "ImportError": (
        "a library is missing or broken",
        "`toolkit doctor` lists what is missing; install it with `pip install -c constraints.txt .`",
        MISSING,
    ),
}


def unexpected(exc: BaseException) -> ToolkitError:
    """Say of an exception that nobody expected what it is; it is a defect of ours."""
    return ToolkitError(
        f"unexpected {type(exc).__name__}: {_first_line(exc)}",
        hint="this is a defect of the toolkit; TOOLKIT_DEBUG=1 shows where it came from",
    )


def explain(exc: BaseException) -> ToolkitError | None:
    """Translate a known foreign exception; None where it is not one we know (a defect of ours)."""
    if isinstance(exc, ToolkitError):
        return exc
    if any(said in str(exc) for said in _SAID_OF_A_FULL_DISK):
        return _disk_full(_first_line(exc))
    for klass in type(exc).__mro__:
        if klass.__name__ in _FOREIGN:
            happened, hint, exit_code = _FOREIGN[klass.__name__]
            return ToolkitError(f"{happened}: {_first_line(exc)}", hint=hint, exit_code=exit_code)
    return _os_error(exc) if isinstance(exc, OSError) else None
