"""Headers of GGUF files: no more of a file is read than its header takes, in a few steps."""

from pathlib import Path

import gguf
import numpy as np
import pytest

from tests.support import memory
from toolkit.core.errors import ToolkitError
from toolkit.formats import gguf_reader
from toolkit.formats.gguf_reader import open_gguf


def write(path: Path, text: int, weights: int = 8) -> Path:
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_string("a.text", "x" * text)
    writer.add_tensor("w", np.zeros(weights, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.mark.parametrize("text", [1, (1 << 20) - 200, (1 << 20) - 90, 1 << 20, 17 << 20])
def test_a_header_of_any_length(tmp_path: Path, text: int) -> None:
    path = write(tmp_path / "a.gguf", text)
    found = open_gguf(path)
    assert len(found.metadata["a.text"]) == text and found.tensors["w"].offset + 32 == path.stat().st_size
    for cut in (text // 2 + 60, text + 70, path.stat().st_size - 1):
        path.write_bytes(path.read_bytes()[:cut])
        with pytest.raises(ToolkitError, match=r"cannot be read as GGUF: .* ends"):
            open_gguf(path)
        write(path, text)


@pytest.mark.slow
def test_the_weights_are_not_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gguf", 100, weights=16 << 20)
    with memory.watched() as seen:
        open_gguf(path)
    assert seen.taken < 8 << 20 < path.stat().st_size


def test_a_file_is_parsed_once_while_it_stays_as_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.gguf", 3)
    open_gguf(path).metadata.clear()  # what a caller does with it is not told to the next
    with monkeypatch.context() as patch:
        patch.setattr(gguf_reader, "_parse", pytest.fail)
        assert open_gguf(path).metadata["a.text"] == "xxx"
    write(path, 5)
    assert open_gguf(path).metadata["a.text"] == "xxxxx"
