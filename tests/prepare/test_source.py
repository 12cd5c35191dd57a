import hashlib
import io
import socket
import threading
import zipfile
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from toolkit.core import input_settings
from toolkit.core.errors import FAILED, MISSING, ToolkitError
from toolkit.core.input_settings import MEDQUAD_CSV, DataSettings
from toolkit.prepare import medquad as source
from toolkit.prepare.source import Source, locate

CSV = b'AnswerID,Answer\nA,"Question: q ?\nAnswer: a.) \n"\n'
Serve = Callable[..., None]


def zipped(content: bytes = CSV, name: str = "folder/All-2479.csv") -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as members:
        members.writestr("folder/qrels.txt", "1 2 3")
        members.writestr("__MACOSX/folder/._All-2479.csv", b"\0\5\x16\7")
        members.writestr(name, content)
    return archive.getvalue()


@pytest.fixture(autouse=True)
def in_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Iterator[Serve]:
    """Serve bytes on loopback as MedQuAD's address, and expect their hashes."""
    servers = []

    def start(body: bytes, *, status: int = 200, claimed: int | None = None, cut: bool = False) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(body) if claimed is None else claimed))
                self.end_headers()
                self.wfile.write(body[: len(body) // 2] if cut else body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        monkeypatch.setattr(source, "MEDQUAD_URL", f"http://127.0.0.1:{server.server_port}/medquad.zip")
        monkeypatch.setattr(source, "ZIP_SHA256", hashlib.sha256(body).hexdigest())
        monkeypatch.setattr(source, "MEDQUAD_SHA256", hashlib.sha256(CSV).hexdigest())

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refused(*, offline: bool = False) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        locate(DataSettings(), offline=offline)
    assert str(MEDQUAD_CSV) in caught.value.hint
    return caught.value


def nothing_written() -> bool:
    return not list(Path("data/raw").glob("*")) if Path("data/raw").exists() else True


def test_a_path_is_taken_as_given(tmp_path: Path) -> None:
    path = tmp_path / "mine.csv"
    path.write_bytes(CSV)
    assert locate(DataSettings(source=str(path)), offline=True) == [Source(path)]


def test_a_missing_path_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ToolkitError, match=r"no data file `nowhere\.csv`") as caught:
        locate(DataSettings(source="nowhere.csv"), offline=False)
    assert caught.value.exit_code == MISSING and "data.source" in caught.value.hint
    with pytest.raises(ToolkitError, match="is a folder"):
        locate(DataSettings(source=str(tmp_path)), offline=False)


def test_medquad_is_downloaded_once(serve: Serve) -> None:
    serve(zipped())
    assert locate(DataSettings(), offline=False) == [Source(MEDQUAD_CSV)]
    assert MEDQUAD_CSV.read_bytes() == CSV
    assert [path.name for path in Path("data/raw").iterdir()] == [MEDQUAD_CSV.name]
    serve(b"", status=500)
    assert locate(DataSettings(), offline=False) == [Source(MEDQUAD_CSV)]
    assert locate(DataSettings(), offline=True) == [Source(MEDQUAD_CSV)]


def test_the_real_file_is_taken_from_the_cache(medquad: Path) -> None:
    MEDQUAD_CSV.parent.mkdir(parents=True)
    MEDQUAD_CSV.write_bytes(medquad.read_bytes())
    assert locate(DataSettings(), offline=True) == [Source(MEDQUAD_CSV)]


def test_a_wrong_copy_is_refused_and_kept(serve: Serve) -> None:
    serve(zipped())
    MEDQUAD_CSV.parent.mkdir(parents=True)
    MEDQUAD_CSV.write_bytes(b"other")
    error = refused()
    assert error.exit_code == FAILED and "not MedQuAD's file" in error.message
    assert MEDQUAD_CSV.read_bytes() == b"other"


def test_offline_downloads_nothing(serve: Serve) -> None:
    serve(zipped())
    error = refused(offline=True)
    assert error.exit_code == MISSING and "--offline" in error.message and nothing_written()


@pytest.mark.parametrize(
    ("body", "how", "message"),
    [
        (zipped(), {"status": 404}, "answers 404"),
        (zipped(), {"cut": True}, "stopped after"),
        (b"\n<!DOCTYPE html><html>sign in</html>", {}, "HTML page instead of a zip"),
        (b"not a zip at all", {}, "not a whole zip"),
        (zipped()[:-30], {}, "not a whole zip"),
        (zipped(CSV + b"x"), {}, "holds no CSV"),
        (zipped(name="folder/readme.txt"), {}, "holds no CSV"),
    ],
)
def test_a_bad_download_leaves_nothing(serve: Serve, body: bytes, how: dict[str, object], message: str) -> None:
    serve(body, **how)
    error = refused()
    assert message in error.message and error.exit_code == MISSING and nothing_written()


def test_another_zip_is_refused(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(zipped())
    monkeypatch.setattr(source, "ZIP_SHA256", "0" * 64)
    assert "has changed" in refused().message and nothing_written()


def test_a_download_without_end_is_stopped(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "MAX_DOWNLOAD", 1000)
    serve(b"PK" + bytes(200_000))
    assert "which is not MedQuAD" in refused().message and nothing_written()


def test_no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    monkeypatch.setattr(source, "MEDQUAD_URL", f"http://127.0.0.1:{port}/medquad.zip")
    error = refused()
    assert error.exit_code == MISSING and "cannot be downloaded" in error.message


def test_the_pinned_hashes_are_sha256() -> None:
    for digest in (source.ZIP_SHA256, input_settings.MEDQUAD_SHA256):
        assert len(bytes.fromhex(digest)) == 32
