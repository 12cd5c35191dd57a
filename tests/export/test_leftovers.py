"""An export outside a run that was killed: the same command works again, and nothing stays behind."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from toolkit.core.errors import ToolkitError
from toolkit.core.files import scratch_folder, writing
from toolkit.export import foreign_modelfile, ordering, standalone

SHAPE: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2}


class Killed(BaseException):
    """The end of a process, as far as files show it: what stands on the disk stays."""


@pytest.fixture
def order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ordering.Order:
    base = models.save_model(tmp_path / "base", **SHAPE)
    adapter = models.save_adapter(tmp_path / "mine", base)
    monkeypatch.chdir(tmp_path)
    return ordering.of_adapter(adapter, None, "none.toml", ())


def carry(order: ordering.Order, *quantizations: str, force: bool = False) -> dict[str, Any]:
    return standalone.carry_out(order, "gguf", quantizations, "out", dry_run=False, force=force)


@pytest.mark.slow
@pytest.mark.parametrize("at", [1, 2, 3])
def test_killed_at_any_rename_the_same_command_works(
    order: ordering.Order, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Of two GGUF files and a Modelfile, the renames come one after the other."""
    count = 0
    rename = Path.replace

    def counted(self: Path, target: Path) -> Path:
        nonlocal count
        found = rename(self, target)
        if Path(target).name in ("mine-F16.gguf", "mine-Q8_0.gguf", "Modelfile"):
            count += 1
            if count == at:
                raise Killed
        return found

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", counted)
        with pytest.raises(Killed):
            carry(order, "F16", "Q8_0")
    assert list(Path("out").glob("mine-*.gguf"))
    assert len(carry(order, "F16", "Q8_0")["files"]) == 2
    assert sorted(path.name for path in Path("out").iterdir()) == ["Modelfile", "mine-F16.gguf", "mine-Q8_0.gguf"]
    with pytest.raises(ToolkitError, match="already there"):
        carry(order, "F16", "Q8_0")


def test_a_file_that_changed_since_is_not_replaced(order: ordering.Order, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any, **__: Any) -> None:
        raise Killed

    with monkeypatch.context() as patched:
        patched.setattr(foreign_modelfile, "write_beside", killed)
        with pytest.raises(Killed):
            carry(order, "F16")
    Path("out/mine-F16.gguf").write_bytes(b"somebody else's")
    with pytest.raises(ToolkitError, match="already there"):
        carry(order, "F16")
    assert Path("out/mine-F16.gguf").read_bytes() == b"somebody else's"


def test_half_written_files_of_other_quantizations_go(order: ordering.Order) -> None:
    """Their names would never be written again; what another process is writing stays."""
    out = Path("out")
    out.mkdir()
    left = [out / f".mine-{name}.abc.part" for name in ("Q4_K_M.gguf", "lora.gguf")]
    for path in left:
        path.write_bytes(b"half")
    folder = out / ".mine-merged.xyz.part"
    folder.mkdir()
    other = out / ".yours-F16.gguf.abc.part"
    other.write_bytes(b"half")
    with writing(out / "mine-Q2_K.gguf"):
        in_use = next(out.glob(".mine-Q2_K.gguf.*.part"))
        carry(order, "F16")
        assert in_use.exists()
    assert not any(path.exists() for path in (*left, folder)) and other.exists()


def test_a_former_merged_folder_comes_back(order: ordering.Order) -> None:
    former = Path("out/.mine-merged.old")
    former.mkdir(parents=True)
    (former / "config.json").write_text("{}")
    carry(order, "F16")
    assert Path("out/mine-merged/config.json").is_file() and not former.exists()


def test_temporary_folders_of_killed_processes_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = (
        "import os, signal, tempfile, sys; tempfile.tempdir = sys.argv[1]\n"
        "from toolkit.core.files import scratch_folder\n"
        "with scratch_folder('test') as place:\n"
        "    (place / 'big').write_bytes(b'x' * 1000); print(place, flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, env=os.environ)
    assert done.returncode == -signal.SIGKILL
    left = Path(done.stdout.strip())
    assert (left / "big").is_file()
    with scratch_folder("other"):
        assert left.is_dir()
    with scratch_folder("test"):
        assert left.is_dir(), "it may belong to a process that has just begun"
    os.utime(left, (0, 0))
    with scratch_folder("test") as first, scratch_folder("test") as second:
        assert not left.exists() and first.is_dir() and second.is_dir()
    assert not list(tmp_path.iterdir())
    shutil.rmtree(tmp_path)
