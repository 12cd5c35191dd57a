"""A damaged GGUF file ends in one error: llama.cpp is never given a header over which it aborts the process."""

import os
import random
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import tiny_gguf
from tests.support.damage import thorough
from tests.support.places import REPOSITORY
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
from toolkit.formats.gguf_reader import open_gguf

CONTEXT = b"llama.context_length" + struct.pack("<II", 4, 4096)
CHILD = """
import sys
from pathlib import Path
from toolkit import llamacpp
from toolkit.core.errors import ToolkitError
for line in sys.stdin:
    try:
        with llamacpp.opened(Path(line.rstrip()), 32) as llm:
            llm.tokenize(b"hello", add_bos=False)
        print("read", flush=True)
    except ToolkitError as problem:
        print("refused" if problem.hint else "unclear", flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_gguf.write(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_a_whole_file_is_read(whole: Path) -> None:
    with llamacpp.opened(whole, 32) as llm:
        assert llamacpp.tokenize(llm, "hello")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: data[: len(data) // 2], "damaged"),
        (lambda data: b"GGUF" + b"\xff" * 40, "damaged"),
        (lambda data: data.replace(string("a") + string("b"), string("a") + string("a")), "a token twice"),
        (lambda data: data.replace(string("x") + string("y"), string("y") + string("y")), "a token twice"),
        (lambda data: data.replace(b"[INST]", b"\0INST]").replace(b"</s>", b"\0/s>"), "a token twice"),
        (lambda data: data.replace(CONTEXT, CONTEXT[:-4] + b"\0\0\0\x80"), "`llama.context_length` is 2147483648"),
    ],
)
def test_a_damaged_file_is_refused(whole: Path, tmp_path: Path, damage: Callable[[bytes], bytes], said: str) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(damage(whole.read_bytes()))
    with pytest.raises(ToolkitError) as problem, llamacpp.opened(path, 32):
        pass
    assert said in problem.value.message and str(path) in problem.value.message and problem.value.hint


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text)) + text.encode()


@pytest.mark.slow
@thorough(60, 2000)
def test_no_mutation_of_the_header_kills_the_process(whole: Path, tmp_path: Path, examples: int) -> None:
    luck, data = random.Random(36), whole.read_bytes()
    header = min(tensor.offset for tensor in open_gguf(whole).tensors.values())
    for number in range(examples):
        changed = bytearray(data)
        for _ in range(luck.choice([1, 1, 2, 4])):
            place = luck.randrange(header)
            fresh = luck.choice(
                [bytes([luck.randrange(256)]), struct.pack("<I", luck.choice([0, 1, 2**31, 2**32 - 1]))]
            )
            changed[place : place + len(fresh)] = fresh
        (tmp_path / f"{number}.gguf").write_bytes(bytes(changed))
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(f"{tmp_path / str(number)}.gguf\n" for number in range(examples)),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert done.returncode == 0 and set(done.stdout.split()) == {"read", "refused"}, done.stderr[-2000:]
    assert len(done.stdout.split()) == examples
