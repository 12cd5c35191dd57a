"""What a server makes of a prompt: one function, whether the vocabulary or the complete model is loaded."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import tiny_gguf
from toolkit import llamacpp
from toolkit.llamacpp.vocabulary import open_vocabulary, trained_positions

BOS = tiny_gguf.BOS


@pytest.mark.parametrize(
    "text", ["", "hello", BOS, f"{BOS}hello", f"{BOS}{BOS}x", f"x{BOS}y {tiny_gguf.EOS}", "é😀" * 9]
)
def test_the_ids_of_a_servers_prompt(tmp_path: Path, text: str) -> None:
    """Ollama adds its BOS to whatever its TEMPLATE renders; llama-server removes the chat template's own first."""
    path = tiny_gguf.write(tmp_path / "a.gguf")
    with llamacpp.opened(path, 64) as llm, open_vocabulary(path) as file:
        served = llamacpp.served(llm, text)
        assert served == file.served_ids(text) == llm.tokenize(text.encode(), add_bos=True, special=True)
        assert file.chat_ids(text) == file.served_ids(text.removeprefix(BOS))
        assert served[0] == file.bos


@pytest.mark.parametrize("positions", [1, 512, 2**31 - 1])
def test_the_positions_of_a_model(tmp_path: Path, positions: int) -> None:
    path = tiny_gguf.write(tmp_path / "a.gguf")
    assert trained_positions(path) == tiny_gguf.CONTEXT
    content, key = path.read_bytes(), b"llama.context_length"
    at = content.index(key) + len(key) + 4
    path.write_bytes(content[:at] + positions.to_bytes(4, "little") + content[at + 4 :])
    assert trained_positions(path) == positions


PROGRAM = """
import sys, threading
import subprocess
import sys
from pathlib import Path
from toolkit.core.errors import ToolkitError
from toolkit.llamacpp.vocabulary import open_vocabulary
good, bad = map(Path, sys.argv[1:])
told = []

def work(path):
    for _ in range(60):
        try:
            with open_vocabulary(path):
                pass
        except ToolkitError as problem:
            told.append(problem.message)

threads = [threading.Thread(target=work, args=(path,)) for path in (good, bad, good, bad)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len(told) == 120 and len(set(told)) == 1, set(told)
assert "unknown model architecture" in told[0], told[0]
"""


@pytest.mark.slow
def test_several_threads_load_in_silence_and_each_hears_its_own_errors(tmp_path: Path) -> None:
    good = tiny_gguf.write(tmp_path / "a.gguf")
    bad = tmp_path / "b.gguf"
    content = good.read_bytes()
    key, value = b"general.architecture", b"llama"
    at = content.index(value, content.index(key))
    bad.write_bytes(content[:at] + b"lIama" + content[at + len(value) :])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(good), str(bad)], capture_output=True, text=True, timeout=300
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
