"""Quantize rows into ggml's types: with our own vector code if it passes its test here, else with libggml.

`quantize.cpp` gives the bytes that `ggml_quantize_chunk` gives, many blocks at a time. Before a type is first used, a
set of hard blocks goes through both, on this machine and with this libggml; after any difference libggml itself does
that type. libggml is llama-cpp-python's own (two copies in one process clash); a failed assertion
there aborts the whole interpreter, so callers check shapes first.
"""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from toolkit.core import console
from toolkit.core.ggml_libraries import library_folder
from toolkit.kernels.test_vectors import hard_rows, importance_for

Rows = npt.NDArray[np.float32] | npt.NDArray[np.uint16]  # uint16: bfloat16, its bits
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]

LIBRARY = Path(__file__).with_name("libquantize.so")
LEVELS = ("plain vectors", "AVX2", "AVX-512")
# ggml's numbers of the types that the kernels have → name, weights and bytes of a block
TYPES = {
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24), 8: ("Q8_0", 32, 34),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144), 13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210), 20: ("IQ4_NL", 32, 18), 23: ("IQ4_XS", 256, 136),
}  # fmt: skip


@dataclass(frozen=True)
class Routine:
    """What quantizes a type: its name, and run(rows of shape (n, columns), out, importance per column or None)."""

    name: str
    run: Callable[[Rows, Bytes, Floats | None], None]


@dataclass(frozen=True)
class Library:
    """The compiled kernels, and the index in LEVELS of the best instruction set that this machine has."""

    handle: Any
    level: int


@cache
def routine(kind: int) -> Routine:
    """Return what quantizes the ggml type of this number, tested here; `warn_of_libggml` says why it is libggml."""
    library = opened() if kind in TYPES else None
    if library is None:
        return Routine("libggml", lambda rows, out, importance: _with_ggml(kind, rows, out, importance))
    if not trusted(library, library.level, kind):
        return Routine("libggml", lambda rows, out, importance: _with_ggml(kind, rows, out, importance))
    return Routine(
        f"kernels ({LEVELS[library.level]})",
        lambda rows, out, importance: _with_kernels(library, kind, rows, out, importance),
    )


@cache
def opened() -> Library | None:
    """Return the compiled kernels of this installation, or None if they are missing or do not load."""
    return load_library(LIBRARY)


def load_library(path: Path) -> Library | None:
    """Open a compiled library of kernels; None if there is none, or one for another machine."""
    try:
        handle = ctypes.CDLL(str(path))
        handle.toolkit_quantize.argtypes = [ctypes.c_int] * 3 + [ctypes.c_void_p] * 2 + [ctypes.c_int64] * 2 + [
            ctypes.c_void_p, ctypes.c_void_p
        ]  # fmt: skip
        handle.toolkit_quantize.restype = ctypes.c_int64
        return Library(handle, handle.toolkit_level())
    except (OSError, AttributeError):
        return None


@cache
def ggml() -> Any:
    """Return libggml's `ggml_quantize_chunk` as a ctypes function, which releases the GIL while it runs.

    Its library is opened without llama.cpp, which would bring CUDA's into this process. Raises ImportError without
    llama-cpp-python, OSError if the library does not load, AttributeError if it has no such function.
    """
    folder = library_folder()
    files = [folder / "libggml-base.so", folder / "libggml-base.dylib"]
    function = ctypes.CDLL(str(next(filter(Path.is_file, files), files[0]))).ggml_quantize_chunk
    integer, pointer = ctypes.c_int64, ctypes.c_void_p
    function.argtypes = [ctypes.c_int, pointer, pointer, integer, integer, integer, pointer]
    function.restype = ctypes.c_size_t
    return function


@cache
def _ggml_address() -> int | None:
    return ctypes.cast(ggml(), ctypes.c_void_p).value


def quantize(library: Library, level: int, kind: int, rows: Rows, out: Bytes, importance: Floats | None = None) -> int:
    """Fill `out` with rows of shape (n, columns) in a type; returns how many blocks (or rows) went to libggml.

    `rows` is C-contiguous, float32 or uint16 for bfloat16; `importance` has one float32 per column, contiguous. Raises
    ValueError for what does not fit, which would write past the end of memory.
    """
    _, weights, size = TYPES[kind]
    count, columns = rows.shape
    fits = columns % weights == 0 and out.nbytes == rows.size // weights * size and out.flags.c_contiguous
    weighs = importance is None or (
        importance.shape == (columns,) and importance.dtype == np.float32 and importance.flags.c_contiguous
    )
    if not (fits and weighs and rows.dtype in (np.float32, np.uint16) and rows.flags.c_contiguous):
        raise ValueError(f"{rows.dtype} rows of shape {rows.shape} for {TYPES[kind][0]} into {out.nbytes} bytes")
    done: int = library.handle.toolkit_quantize(
        level, kind, rows.dtype == np.uint16, rows.ctypes.data, out.ctypes.data, count, columns,
        None if importance is None else importance.ctypes.data,
        _ggml_address(),
    )  # fmt: skip
    if done < 0:
        raise MemoryError(f"no memory to quantize rows of {columns} weights")
    return done


def quantize_with_ggml(kind: int, rows: Rows, out: Bytes, importance: Floats | None = None) -> int:
    """Fill `out` as libggml does, for any of its types; returns the bytes that it wrote."""
    values = widened(rows)
    weights = None if importance is None else importance.ctypes.data
    written: int = ggml()(kind, values.ctypes.data, out.ctypes.data, 0, *values.shape, weights)
    return written


def widened(rows: Rows) -> Floats:
    """Return rows as float32; bfloat16 bits become the float32 that they stand for."""
    if rows.dtype == np.float32:
        return rows  # type: ignore[return-value]
    return np.left_shift(rows, 16, dtype=np.uint32).view(np.float32)


def to_bf16(values: Floats) -> npt.NDArray[np.uint16]:
    """Return the upper halves of float32 values as bfloat16 bits: cut off towards zero, not rounded.

    Exact for values on bfloat16's grid. A NaN whose bits are all in the lower half becomes infinity.
    """
    return (values.view(np.uint32) >> 16).astype(np.uint16)


@cache
def trusted(library: Library, level: int, kind: int) -> bool:
    """Tell whether kernel and libggml give the same bytes for the hard blocks, with and without importance.

    Twenty milliseconds at most.
    """
    _, weights, size = TYPES[kind]
    rows = hard_rows(0, 3 * 256)
    narrow = to_bf16(rows)
    for importance in (None, importance_for(0, rows.shape[1])):
        for given in (rows, narrow):
            ours, theirs = (np.empty(rows.size // weights * size, np.uint8) for _ in range(2))
            quantize(library, level, kind, given, ours, importance)
            quantize_with_ggml(kind, given, theirs, importance)
            if not np.array_equal(ours, theirs):
                return False
    return True


def kernels_state() -> tuple[bool, str]:
    """Say for `doctor` what quantizes here, and whether it works as it should."""
    library = opened()
    if library is None:
        there = "do not load here" if LIBRARY.exists() else "are not compiled"
        return False, f"libggml: the kernels {there}; exports work, but quantize up to 20 times slower"
    wrong = [name for kind, (name, _, _) in TYPES.items() if not trusted(library, library.level, kind)]
    if wrong:
        return False, f"libggml for {', '.join(wrong)}, because the kernels differ from it on this machine"
    return True, f"kernels with {LEVELS[library.level]}, {len(TYPES)} types, the same bytes as libggml"


def warn_of_libggml(kind: int) -> None:
    """Warn once if libggml quantizes the ggml type of this number although there are kernels for it."""
    library = opened()
    if kind in TYPES and library is None:
        console.warn_once(
            "quantizing with libggml, up to 20 times slower: the compiled kernels are missing (see `toolkit doctor`)"
        )
    elif kind in TYPES and library is not None and not trusted(library, library.level, kind):
        console.warn_once(
            f"the {TYPES[kind][0]} kernel differs from libggml on this machine: libggml is used for that type"
        )


def _with_kernels(library: Library, kind: int, rows: Rows, out: Bytes, importance: Floats | None) -> None:
    quantize(library, library.level, kind, rows, out, importance)


def _with_ggml(kind: int, rows: Rows, out: Bytes, importance: Floats | None) -> None:
    written = quantize_with_ggml(kind, rows, out, importance)
    if written != out.nbytes:
        raise ValueError(f"ggml wrote {written} bytes where {out.nbytes} belong")
