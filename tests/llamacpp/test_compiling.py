"""The command that compiles llama-cpp-python again is whole, and leaves out what this CPU does badly."""

import pytest

from toolkit.core import hardware
from toolkit.llamacpp import compiling


@pytest.mark.parametrize("amx", [True, False])
def test_the_hint_leaves_out_amx_where_the_cpu_has_it(monkeypatch: pytest.MonkeyPatch, amx: bool) -> None:
    monkeypatch.setattr(hardware, "cpu_has_amx", lambda: amx)
    for command in (compiling.advice(), compiling.compile_again(), compiling.compile_again(cuda=True)):
        assert ('CFLAGS="-mno-amx-tile' in command) == amx
        assert command.endswith("pip install --force-reinstall --no-cache-dir --no-deps llama-cpp-python==0.3.36")
    assert compiling.compile_again(cuda=True).startswith('CMAKE_ARGS="-DGGML_CUDA=on" ')
