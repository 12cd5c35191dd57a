"""The server's disk is full, for real: a small tmpfs under its store, filled to the last byte at every step."""

import hashlib
import os
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.conftest import ollama_binary
from tests.register.conftest import Run, bare_run, temporary
from tests.support.faults import Handler, proxy
from tests.support.ollama_server import OllamaServer, ollama_server
from toolkit.core.errors import FAILED, ToolkitError
from toolkit.ollama import server, transaction

pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_proof")]


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[OllamaServer, Path]]:
    """A server whose store is a tmpfs of 6 MB, and the store's folder."""
    store = tmp_path / "ollama" / "models"
    store.mkdir(parents=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=6m", "tmpfs", store], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        with ollama_server(ollama_binary(), tmp_path / "ollama") as running:
            yield running, store
    finally:
        subprocess.run(["umount", "-l", store], check=True)


def fill(store: Path) -> None:
    """Write until nothing more can be written."""
    with suppress(OSError), (store / "ballast").open("ab", buffering=0) as file:
        while file.write(bytes(4096)) == 4096:
            pass


def recover(run: Run) -> None:
    with server.http(run.config.ollama) as http, transaction.begin(http, run.name, 120):
        pass


def test_a_file_that_does_not_fit(small: tuple[OllamaServer, Path], tmp_path: Path) -> None:
    running, store = small
    former = bare_run(tmp_path / "former", running.url, "fits", seed=1)
    former.register()
    held, answer = former.held(), former.answer()
    large = bare_run(tmp_path / "large", running.url, "fits", seed=2, export={"quantizations": ["F32"]})
    path = large.files["F32"]
    with path.open("ab") as file:
        file.write(os.urandom(8 << 20))
    large.digests["F32"] = hashlib.sha256(path.read_bytes()).hexdigest()
    with pytest.raises(ToolkitError, match="no space left on device") as caught:
        large.register()
    assert caught.value.exit_code == FAILED and "OLLAMA_MODELS" in caught.value.hint
    assert former.held() == held and former.answer() == answer
    assert sum(path.stat().st_size for path in (store / "blobs").iterdir()) < 3 << 20


def without_copies(run: Run) -> None:
    """Delete the copies that a registration kept of the model before it."""
    for tag in run.held():
        if tag.startswith("previous"):
            run.client().delete(f"full:{tag}")


@pytest.mark.usefixtures("no_question")
def test_full_before_any_step(small: tuple[OllamaServer, Path], tmp_path: Path) -> None:
    """Full from the nth change on until the end of the call, for every n: the former model, or the new one, whole."""
    running, store = small
    former = bare_run(tmp_path / "former", running.url, "full", seed=1, export={"quantizations": ["F32"]})
    former.register()
    held, answer = former.held(), former.answer()
    failures = 0
    for number in range(60):
        changes = 0
        with proxy(running.url) as (url, passing):

            def strike(handler: Handler, number: int = number) -> bool:
                nonlocal changes
                changes += handler.command in ("POST", "DELETE") and handler.path.startswith(
                    ("/api/blobs", "/api/create", "/api/copy", "/api/delete")
                )
                if changes >= number:
                    fill(store)
                return False

            passing.fault = strike
            fresh = bare_run(
                tmp_path / "fresh", url, "full", seed=2, export={"quantizations": ["F32"]}, ollama={"num_predict": 300}
            )
            try:
                fresh.register()
            except ToolkitError as exc:
                assert exc.exit_code == FAILED and exc.hint
                failures += 1
            else:
                if changes < number:
                    break
        (store / "ballast").unlink(missing_ok=True)
        recover(former)
        assert not temporary(former)
        if former.held() != held:
            assert former.held().get("previous") == held["latest"]
            without_copies(former)
            former.register()
            without_copies(former)
        assert former.held() == held and former.answer() == answer, number
    assert failures > 5
