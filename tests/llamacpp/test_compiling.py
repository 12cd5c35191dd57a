"""The command that compiles llama-cpp-python again is whole, and leaves out what this CPU does badly."""

from pathlib import Path

import pytest

from toolkit.core import ggml_libraries, hardware
from toolkit.llamacpp import compiling


@pytest.mark.parametrize("amx", [True, False])
def test_the_hint_leaves_out_amx_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(hardware, "cpu_has_amx", lambda: amx)
    for command in (compiling.advice(), compiling.compile_again(), compiling.compile_again(cuda=True)):
        assert ('CFLAGS="-mno-amx-tile' in command) == amx
        assert command.endswith("pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36")
    assert compiling.compile_again(cuda=True).startswith('CMAKE_ARGS="-DGGML_CUDA=on" ')


@pytest.mark.parametrize("library", ["libllama.so", "libggml-cuda.so"])
def test_a_library_with_its_own_cxx_library_is_compiled_by_the_systems_compiler(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, library: str
) -> None:
    """One is enough: CUDA's has another compiler than the others."""
    for name in ("libllama.so", "libggml.so", "libggml-cuda.so"):
        (tmp_path / name).write_bytes(b"\x7fELF libstdc++.so.6")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    assert not ggml_libraries.holds_cxx_library() and "CC=" not in compiling.advice()
    (tmp_path / library).write_bytes(b"\x7fELF _ZNSt7codecvt")
    assert ggml_libraries.holds_cxx_library()
    assert compiling.compile_again(cuda=True).startswith("CC=gcc CXX=g++ CUDAHOSTCXX=g++ CMAKE_ARGS=")
    assert compiling.advice().startswith("each of its libraries holds a C++ library of its own")


def test_the_installed_libraries_share_one_cxx_library() -> None:
    assert not ggml_libraries.holds_cxx_library()
