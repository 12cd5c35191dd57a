"""Foreign exceptions become one line and a hint; what we do not know stays a defect."""

import errno
import resource
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from toolkit.core.errors import FAILED, MISSING, ToolkitError, explain


def test_os_errors() -> None:
    full = explain(OSError(errno.ENOSPC, "No space left on device", "out/file"))
    assert full is not None and "disk is full" in full.message and "out/file" in full.message
    denied = explain(PermissionError(errno.EACCES, "Permission denied", "/root/x"))
    assert denied is not None and "no permission" in denied.message
    other = explain(FileNotFoundError(errno.ENOENT, "No such file or directory", "gone"))
    assert other is not None and "gone" in other.message and other.exit_code == FAILED


def test_a_name_that_is_too_long_is_shortened() -> None:
    for name in ("a" * 5000, "é" * 3000):
        with pytest.raises(OSError, match="too long") as caught:
            Path(name).stat()
        found = explain(caught.value)
        assert found is not None and "too long for a file" in found.message and len(found.message) < 200
        assert f"{len(name.encode()):,} bytes" in found.message and "255 bytes" in found.hint


def test_hub_errors_by_their_real_classes() -> None:
    import httpx
    from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

    request = httpx.Request("GET", "https://hub.invalid/api/models/a/b")
    for kind, said in ((GatedRepoError, "gated"), (RepositoryNotFoundError, "no such model")):
        response = httpx.Response(403, request=request)
        found = explain(kind("Access to model a/b is restricted.\nmore", response=response))
        assert found is not None and said in found.message and found.exit_code == MISSING
        assert "\n" not in found.message


def test_memory_weights_and_server_by_their_real_classes() -> None:
    import httpx
    import torch
    from safetensors import SafetensorError

    for problem, said in (
        (torch.cuda.OutOfMemoryError("CUDA out of memory. Tried"), "out of memory"),
        (MemoryError(), "out of memory"),
        (SafetensorError("HeaderTooLarge"), "cannot be read"),
        (httpx.ConnectError("refused"), "no Ollama server"),
        (ConnectionError("Failed to connect to Ollama"), "no Ollama server"),
    ):
        found = explain(problem)
        assert found is not None and said in found.message and found.hint


@pytest.mark.parametrize("defect", [ValueError("x"), KeyError("x"), AssertionError()])
def test_a_defect_is_not_explained_away(defect: Exception) -> None:
    assert explain(defect) is None


def test_our_own_error_stays_itself() -> None:
    problem = ToolkitError("x", hint="y")
    assert explain(problem) is problem


def test_a_full_disk_by_the_libraries_own_words(tmp_path: Path) -> None:
    """Written for real under a file size limit, which fails as a full disk does."""
    import safetensors.torch
    import torch

    weights = {"a": torch.zeros(1_000_000)}
    writers: list[Callable[..., None]] = [torch.save, safetensors.torch.save_file]
    found = []
    ignored, limits = signal.signal(signal.SIGXFSZ, signal.SIG_IGN), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        for write in writers:
            try:
                write(weights, str(tmp_path / "x"))
            except Exception as exc:
                found.append(explain(exc))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, ignored)
    assert found[0] is not None and found[0].message.startswith("the disk is full")
    full = explain(Exception("Error while serializing: I/O error: No space left on device (os error 28)"))
    assert full is not None and full.message.startswith("the disk is full")
