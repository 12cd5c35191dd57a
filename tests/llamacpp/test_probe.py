"""Whether llama.cpp computes here is asked in a process of its own: a library that kills it is an error with a hint."""

import os
import tempfile
from pathlib import Path

import pytest

from tests.support import remote
from toolkit.core import hardware
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.llamacpp import checks, opened, probe

pytestmark = pytest.mark.slow

LIBRARY = """
import os, signal, sys
from ctypes import string_at
def llama_supports_gpu_offload(): return False
class Llama:
    def __init__(self, *_, **__): {deed}
"""


@pytest.fixture
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache in which nothing is remembered yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    probe.require.cache_clear()
    return tmp_path / "cache" / "toolkit" / "llama.cpp"


@pytest.fixture(autouse=True)
def forgotten() -> object:
    """What one test found out is not told to the next."""
    yield
    probe.require.cache_clear()


def with_library(place: Path, monkeypatch: pytest.MonkeyPatch, deed: str) -> None:
    """Put a llama_cpp before the real one in the processes that are started from now on."""
    (place / "llama_cpp.py").write_text(LIBRARY.format(deed=deed))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(place), os.environ.get("PYTHONPATH", "")]))


def test_a_library_that_computes_is_remembered(fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert probe.failure() == "" and not fresh.exists()  # the doctor writes nothing
    probe.require()
    assert len(list(fresh.iterdir())) == 1
    with_library(tmp_path, monkeypatch, "os.kill(os.getpid(), signal.SIGSEGV)")
    assert probe.failure() == ""  # asked once


def test_files_of_the_current_folder_are_not_taken_for_libraries(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("random", "gguf", "numpy", "toolkit"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')")
    monkeypatch.chdir(tmp_path)
    assert probe.failure() == "" and not fresh.exists()  # the doctor writes nothing
    probe.require()
    assert len(list(fresh.iterdir())) == 1


@pytest.mark.parametrize(
    ("deed", "said"),
    [
        ("os.kill(os.getpid(), signal.SIGSEGV)", "ended the process (SIGSEGV)"),
        ("string_at(0)", "ended the process (SIGSEGV)"),
        ("os.kill(os.getpid(), signal.SIGILL)", "ended the process (SIGILL)"),
        ("sys.exit('no kernel for this GPU')", "no kernel for this GPU"),
        ("raise ValueError('no such file')", "ValueError: no such file"),
    ],
)
def test_one_that_dies_is_named_before_a_file_is_opened(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, deed: str, said: str
) -> None:
    with_library(tmp_path, monkeypatch, deed)
    (temporary := tmp_path / "temporary").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setenv("TMPDIR", str(temporary))
    check = checks.llama_cpp()
    assert check.ok is False and said in check.found and "llama-cpp-python==0.3.36" in check.fix
    monkeypatch.setattr("toolkit.llamacpp.check_header", lambda _: None)
    (tmp_path / "x.gguf").touch()
    with pytest.raises(ToolkitError, match="does not work on this machine") as caught, opened(tmp_path / "x.gguf", 8):
        pass
    assert caught.value.exit_code == MISSING and said in caught.value.message
    assert not fresh.exists() and not list(temporary.iterdir())


DIES_ON = """
import os, signal
def llama_supports_gpu_offload(): return True
class Llama:
    def __init__(self, *_, **__):
        import sys
        assert sys.modules["torch"] is None
        if (os.environ.get("CUDA_VISIBLE_DEVICES") == "-1") == {hidden}:
            os.kill(os.getpid(), signal.SIGSEGV)
        sys.exit(0)
"""


@pytest.mark.parametrize(
    ("hidden", "said"),
    [(False, "1 MB on the GPU ended the process (SIGSEGV)"), (True, "1 MB ended the process")],
)
def test_a_build_for_a_gpu_is_asked_as_it_is_used(
    fresh: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hidden: bool, said: str
) -> None:
    """In a process without torch, with the GPU and without it."""
    remote.pretend(monkeypatch, tmp_path)
    monkeypatch.setattr(hardware, "driver_offers_gpu", lambda: True)
    (tmp_path / "llama_cpp.py").write_text(DIES_ON.format(hidden=hidden))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
    assert said in probe.failure()
