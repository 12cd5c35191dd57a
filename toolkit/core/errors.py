"""What can go wrong: one error type with a hint and an exit code, and one table for foreign exceptions."""

import errno
import os
from pathlib import Path
from typing import Any

from toolkit.core.places import mover

FAILED = 1
USAGE = 2
MISSING = 3
GATE = 4
INTERRUPTED = 130


class ToolkitError(Exception):
    """Say what was found and where (`message`), what to do next (`hint`), and the process's exit code.

    `details` is further information for scripts; it goes into the JSON object only.
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
    path = os.fsdecode(exc.filename) if isinstance(exc.filename, str | bytes) else ""
    if exc.errno == errno.ENAMETOOLONG:
        shown = f"{path[:60]}…" if len(path) > 60 else path
        return ToolkitError(
            f"a name is too long for a file: `{shown}` ({len(os.fsencode(path)):,} bytes)",
            hint="choose a shorter one: a file's or folder's name has 255 bytes at most, a whole path 4,095",
        )
    elsewhere = mover(Path(path)) if path else ""
    if exc.errno in (errno.ENOSPC, errno.EDQUOT):
        return _disk_full(path or "a file that the system does not name", elsewhere)
    if exc.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ToolkitError(
            f"no permission to use `{path}`: {os.strerror(exc.errno)}",
            hint=f"change its permissions, or {_other_place(path, elsewhere)}",
        )
    reason = exc.strerror or str(exc)
    if elsewhere:
        return ToolkitError(f"{reason}: {path}", hint=_other_place(path, elsewhere))
    return ToolkitError(f"{reason}: {path}" if path else reason, hint="check that the path exists and can be read")


def _other_place(path: str, elsewhere: str) -> str:
    """Say how to choose another place than one that cannot be used."""
    if elsewhere:
        return f"choose another folder with the variable {elsewhere}: `{elsewhere}=DIR toolkit …`"
    if Path(path).is_file():
        return "name another file"
    return "choose another folder; `--set run.folder=DIR` moves the results"


def _disk_full(path: object, elsewhere: str = "") -> ToolkitError:
    other = f", or choose a folder on another disk with the variable {elsewhere}" if elsewhere else ""
    return ToolkitError(
        f"the disk is full: {path}",
        hint=f"free some space{other}, and run the same command again; nothing half-written was kept",
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
# library is imported to look. OSError is handled separately: its errno decides.
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
    "RecursionError": (
        "what was read is nested too deeply",
        "a file of the model or the data is damaged: copy or write it again",
        FAILED,
    ),
    "PanicException": (
        "a library failed on a file that it read",
        "tokenizer.json or the weights of the base or adapter are damaged: copy them again",
        FAILED,
    ),
    "ImportError": (
        "a library is missing or broken",
        "`toolkit doctor` lists what is missing; install it with `pip install -c constraints.txt .`",
        MISSING,
    ),
}


def known_exceptions() -> dict[str, tuple[str, str, int]]:
    """Return what `explain` knows of other libraries' exceptions: by class, what happened, what to do, exit code."""
    return dict(_FOREIGN)


def unexpected(exc: BaseException) -> ToolkitError:
    """Describe an unexpected exception; it is a bug of ours."""
    return ToolkitError(
        f"unexpected {type(exc).__name__}: {_first_line(exc)}",
        hint="this is a bug in the toolkit; TOOLKIT_DEBUG=1 shows where it came from",
    )


def missing_certificates() -> str:
    """Say which variable names certificates that are not there; empty where none does."""
    for name in ("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"):
        value = os.environ.get(name)
        if value and not os.access(value, os.R_OK):
            return f"{name} names `{value}`, which cannot be read"
    return ""


def _of_environment(exc: BaseException) -> ToolkitError | None:
    """Explain how a variable of the environment caused an error; None if none did."""
    said = str(exc)
    if isinstance(exc, UnicodeEncodeError) and exc.reason == "surrogates not allowed":
        return ToolkitError(
            f"a name holds bytes that are not UTF-8: {exc.object[:200]!a}",
            hint="rename that file or folder, then run the same command again",
            exit_code=USAGE,
        )
    if isinstance(exc, UnicodeEncodeError) and exc.encoding == "ascii":
        return ToolkitError(
            f"this locale cannot write a file's name: {exc.object[:200]!a}",
            hint="set LC_ALL=C.UTF-8",
            exit_code=MISSING,
        )
    if isinstance(exc, RuntimeError) and "home directory" in said.lower():
        return ToolkitError(
            "the home folder for `~` is unknown",
            hint="set HOME, or write the path without `~`; XDG_CACHE_HOME says where the toolkit keeps its cache",
            exit_code=MISSING,
        )
    if isinstance(exc, ImportError) and "SOCKS" in said:
        return ToolkitError(
            "the environment names a SOCKS proxy, and the library for it is missing",
            hint="pip install socksio, or unset ALL_PROXY, or set NO_PROXY to the host that needs no proxy",
            exit_code=MISSING,
        )
    if isinstance(exc, FileNotFoundError) and exc.filename is None and missing_certificates():
        return ToolkitError(missing_certificates(), hint="correct or unset that variable", exit_code=MISSING)
    return None


def explain(exc: BaseException) -> ToolkitError | None:
    """Translate a known foreign exception; None where it is not one we know (a bug of ours)."""
    if isinstance(exc, ToolkitError):
        return exc
    if any(said in str(exc) for said in _SAID_OF_A_FULL_DISK):
        return _disk_full(_first_line(exc))
    found = _of_environment(exc)
    if found:
        return found
    for klass in type(exc).__mro__:
        if klass.__name__ in _FOREIGN:
            happened, hint, exit_code = _FOREIGN[klass.__name__]
            return ToolkitError(f"{happened}: {_first_line(exc)}", hint=hint, exit_code=exit_code)
    return _os_error(exc) if isinstance(exc, OSError) else None
