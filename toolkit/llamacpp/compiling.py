"""How to compile llama-cpp-python for this machine, if the installed one does not work."""

from toolkit.core import hardware
from toolkit.core.ggml_libraries import holds_cxx_library

SYSTEM = "CC=gcc CXX=g++ CUDAHOSTCXX=g++"  # nvcc takes the last one


def advice() -> str:
    """Return what to do where llama.cpp does not compute: compile it here, without what is known to fail."""
    without = " without AMX" if hardware.cpu_has_amx() else ""
    command = compile_again()
    own = "each of its libraries holds a C++ library of its own, as the compiler of that machine made them; "
    return f"{own if command.startswith(SYSTEM) else ''}compile it for this machine{without}: {command}"


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
