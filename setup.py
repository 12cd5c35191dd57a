"""Build the quantization kernels with the package, where a C++ compiler is there; the rest stands in pyproject.toml.

The library is loaded by ctypes and knows nothing of Python, so a wheel serves every Python of its platform.
"""

import os
import platform
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

FLAGS = [
    "-O3", "-std=c++17", "-fPIC", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti", "-Wno-psabi",
    "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math",  # the first: a fused a * b + c has other bits
]  # fmt: skip
LEVELS = [[], ["-mavx2"], ["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq", "-mprefer-vector-width=512"]]
SOURCE = Path("toolkit/kernels/quantize.cpp")


def compile_kernels(target: Path, folder: Path) -> None:
    """Compile the source once for each instruction set, and link; raises CompileError."""
    named = os.environ.get("CXX", "").split()
    found = next((name for name in ("c++", "g++", "clang++") if shutil.which(name)), None)
    if not named and found is None:
        raise CompileError("no C++ compiler: libggml will quantize, up to 20 times slower")
    compiler = named or [str(found)]
    levels = LEVELS if platform.machine().lower() in ("x86_64", "amd64") else LEVELS[:1]
    folder.mkdir(parents=True, exist_ok=True)
    target.parent.mkdir(parents=True, exist_ok=True)
    objects = [str(folder / f"quantize{level}.o") for level in range(len(levels))]
    calls = [
        [*compiler, *FLAGS, *flags, f"-DLEVEL={level}", "-c", str(SOURCE), "-o", objects[level]]
        for level, flags in enumerate(levels)
    ]
    lean = ["-Wl,--as-needed", "-s"] if sys.platform == "linux" else []  # it needs nothing of libstdc++
    with ThreadPoolExecutor() as pool:
        list(pool.map(_call, calls))
    _call([*compiler, "-shared", *objects, *lean, "-o", str(target)])


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")


class BuildKernels(build_ext):
    """Compile the kernels as a plain shared library."""

    def build_extension(self, ext: Extension) -> None:
        """Compile the one library there is."""
        try:
            compile_kernels(Path(self.get_ext_fullpath(ext.name)), Path(self.build_temp))
        except OSError as exc:
            raise CompileError(str(exc)) from None

    def get_ext_filename(self, fullname: str) -> str:
        """Return the path without a Python version in it."""
        return str(Path(*fullname.split("."))) + ".so"


class PlatformWheel(bdist_wheel):
    """A wheel for any Python 3 of this platform."""

    def get_tag(self) -> tuple[str, str, str]:
        """Return the tags of the wheel."""
        return "py3", "none", super().get_tag()[2]


HEADERS = [str(path) for path in sorted(SOURCE.parent.glob("*.h"))]
setup(
    ext_modules=[Extension("toolkit.kernels.libquantize", [str(SOURCE)], depends=HEADERS, optional=True)],
    cmdclass={"build_ext": BuildKernels, "bdist_wheel": PlatformWheel},
)
