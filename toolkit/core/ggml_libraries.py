"""The libraries that llama-cpp-python was built with: where they are, and whether one is for a GPU. None is loaded."""

import importlib.util
import os
import re
from pathlib import Path

FOR_THE_CPU = ("base", "blas", "cpu", "rpc")
CXX_LIBRARY = b"libstdc++.so"  # how a Linux library names the C++ library that it shares with others


def library_folder() -> Path:
    """Return the folder of llama-cpp-python's libraries; raises ImportError if it is not installed."""
    named = os.environ.get("LLAMA_CPP_LIB_PATH")  # llama-cpp-python's own variable
    if named:
        return Path(named)
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        raise ImportError("llama-cpp-python is not installed")
    return Path(spec.origin).parent / "lib"


def gpu_libraries() -> list[str]:
    """Return the libraries that compute on a GPU (`cuda`, `hip`, `vulkan` …); empty in a build for the CPU."""
    try:
        files = [*library_folder().glob("*ggml-*")]
    except ImportError:
        return []
    found = {match[1] for file in files if (match := re.match(r"(?:lib)?ggml-([a-z0-9]+)", file.name))}
    return sorted(found.difference(FOR_THE_CPU))


def holds_cxx_library() -> bool:
    """Tell whether a library of the installed llama-cpp-python has the C++ library inside, and does not share it.

    Two copies call each other's functions, and die by SIGSEGV as a file is loaded. Seen with a compiler that links with
    `-static-libstdc++`, which the environment named as CC, CXX and CUDAHOSTCXX.
    """
    try:
        files = [path for path in library_folder().glob("lib*.so") if path.stem.startswith(("libllama", "libggml"))]
        return any(CXX_LIBRARY not in path.read_bytes() for path in files)
    except (ImportError, OSError):
        return False
