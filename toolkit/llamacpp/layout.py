"""Where llama.cpp keeps a file's weights: mapped as they are, or copied into a layout that its kernels read faster."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

from toolkit.core import hardware

ROOM = (
    3  # times a file's size that must be free before its weights are copied: the pages of the file want as much again
)
_changed = threading.Lock()


def copies_weights(path: Path) -> bool:
    """Tell whether there is memory for a copy of a file's weights beside its pages."""
    free = hardware.available_memory()
    return free is None or free >= ROOM * path.stat().st_size


@contextlib.contextmanager
def fitting_layout(path: Path) -> Iterator[None]:
    """Let models that are loaded in the block copy their weights only where `copies_weights` says so.

    A copy is memory that no file backs: 4.9 GB for Llama-3.1-8B in Q4_K_M. llama-cpp-python has no argument for it, so
    the default that it asks for is changed (llama.h: use_extra_bufts).
    """
    import llama_cpp.llama_cpp as library

    if copies_weights(path):
        yield
        return
    with _changed:
        usual = library.llama_model_default_params

        def in_place() -> library.llama_model_params:
            params = usual()
            params.use_extra_bufts = False
            return params

        library.llama_model_default_params = in_place
        try:
            yield
        finally:
            library.llama_model_default_params = usual
