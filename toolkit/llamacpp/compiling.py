"""How to compile llama-cpp-python for this machine, if the installed one does not work."""

from toolkit.core import hardware
from toolkit.core.ggml_libraries import library_folder

SHARED = b"libstdc++.so"  # how a Linux library names the C++ library that it shares with others
SYSTEM = "CC=gcc CXX=g++ CUDAHOSTCXX=g++"  # nvcc takes the last one


def advice() -> str:
    """Return what to do where llama.cpp does not compute: compile it here, without what is known to fail."""
    without = " without AMX" if hardware.cpu_has_amx() else ""
    reason = (
        "each of its libraries holds a C++ library of its own, as the compiler of that machine made them; "
        if holds_cxx_library()
        else ""
    )
    return f"{reason}compile it for this machine{without}: {compile_again()}"


def compile_again(*, cuda: bool = False) -> str:
    """Return the command that compiles the version of llama-cpp-python that this package asks for.

    AMX is left out where the CPU has it, and the compiler that the environment names if the installed libraries show
    that it is unfit. With `cuda` it is for NVIDIA's GPUs too, which needs CUDA's compiler, `nvcc`.
    """
    found = [line for line in hardware.requirements() if line.startswith("llama-cpp-python")]
    wanted = found[0].split(";")[0].strip() if found else "llama-cpp-python"
    off = "-mno-amx-tile -mno-amx-int8 -mno-amx-bf16"
    parts = [SYSTEM] if holds_cxx_library() else []
    parts += ['CMAKE_ARGS="-DGGML_CUDA=on"'] if cuda else []
    parts += [f'CFLAGS="{off}" CXXFLAGS="{off}"'] if hardware.cpu_has_amx() else []
    return " ".join([*parts, "pip install --force-reinstall --no-cache-dir --no-deps", wanted])


def holds_cxx_library() -> bool:
    """Tell whether a library of the installed llama-cpp-python has the C++ library inside, and does not share it.

    Two copies call each other's functions, and die by SIGSEGV as a file is loaded. Seen with a compiler that links with
    `-static-libstdc++`, which the environment named as CC, CXX and CUDAHOSTCXX.
    """
    try:
        files = [path for path in library_folder().glob("lib*.so") if path.stem.startswith(("libllama", "libggml"))]
        return any(SHARED not in path.read_bytes() for path in files)
    except (ImportError, OSError):
        return False
