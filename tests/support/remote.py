"""A build for the CPU that is taken for one for a GPU, so that files are opened in a process of their own."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest

from toolkit.core import ggml_libraries
from toolkit.llamacpp.remote import beside_file


def pretend(monkeypatch: pytest.MonkeyPatch, place: Path, name: str = "cuda") -> None:
    """Let this process, and those that it starts, find a library for a GPU beside llama-cpp-python's own."""
    libraries = place / "libraries"
    libraries.mkdir()
    for path in ggml_libraries.library_folder().iterdir():
        (libraries / path.name).symlink_to(path)
    (libraries / f"libggml-{name}.so").touch()
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(libraries))


@beside_file
def process_of(opened: Any) -> dict[str, Any]:
    """What the process is that has a file open: its number, the parts of torch in it, and its GPUs."""
    try:
        import torch  # noqa: F401
    except ImportError:
        can = False
    else:
        can = True
    parts = [name for name, module in sys.modules.items() if name.split(".")[0] == "torch" and module is not None]
    return {"pid": os.getpid(), "torch": parts, "can": can, "gpus": os.environ.get("CUDA_VISIBLE_DEVICES")}


@beside_file
def fail(opened: Any, kind: str) -> None:
    """Fail as a library may: by a signal or an exit code, after it said why, or by an error."""
    if kind == "unreadable":
        raise type("Odd", (Exception,), {})("cannot be sent")
    if kind == "ValueError":
        raise ValueError("no such token")
    print("CUDA error: out of memory", file=sys.stderr, flush=True)
    if kind == "exit":
        os._exit(7)
    os.kill(os.getpid(), int(kind))


@beside_file
def wait(opened: Any, started: str) -> None:
    """Work for a minute in C code that no signal interrupts; a file says that it began."""
    import ctypes

    Path(started).touch()
    ctypes.PyDLL(None).sleep(60)
