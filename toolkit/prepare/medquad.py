"""MedQuAD, downloaded once from its public repository: the 2,479 judged answers, or all of its XML documents."""

import http.client
import io
import urllib.error
import urllib.request
import zipfile
from hashlib import sha256
from pathlib import Path

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import sha256_of, writing
from toolkit.core.input_settings import MEDQUAD_CSV, MEDQUAD_FULL, MEDQUAD_FULL_URL, MEDQUAD_SHA256, MEDQUAD_URL
from toolkit.core.network import forbidden_by

ZIP_SHA256 = "23d339357e5a10066542cc1e12f458f7002a8a86731369c8f4a8c4e337bf9ba1"
MAX_DOWNLOAD = 64 * 1024 * 1024  # bytes; the zips have 3.5 and 16 MB, the CSV too is far smaller
# Where the documents are looked for: as the download is named here, and as a browser or git names it.
FULL_PLACES = (
    MEDQUAD_FULL,
    *(MEDQUAD_FULL.parent / name for name in ("MedQuAD-master.zip", "MedQuAD-master", "MedQuAD")),
)
TIMEOUT = 30.0  # seconds without an answer


def fetch_medquad(*, offline: bool) -> None:
    """Download MedQuAD's CSV where it is not there.

    Raises ToolkitError if it has other content than MedQuAD's; exit 3 where the network is forbidden or fails.
    """
    if MEDQUAD_CSV.exists():
        found = sha256_of(MEDQUAD_CSV)
        if found != MEDQUAD_SHA256:
            raise ToolkitError(
                f"`{MEDQUAD_CSV}` is not MedQuAD's file: its sha256 begins with {found[:12]}, "
                f"not with {MEDQUAD_SHA256[:12]}",
                hint="move it away and run the same command again to download it, "
                f"or use it as your own file with `--set data.source={MEDQUAD_CSV}`",
            )
        return
    content = _csv_inside(_download(MEDQUAD_URL, MEDQUAD_CSV, offline=offline))
    _keep(content, MEDQUAD_CSV, "2,479 answers")


def full_place() -> Path:
    """Return where MedQuAD's documents are, a zip or a folder; where they will be, if they are not here yet."""
    return next((path for path in FULL_PLACES if path.exists()), MEDQUAD_FULL)


def fetch_full(*, offline: bool) -> None:
    """Download the zip of MedQuAD's documents where they are not there.

    Raises ToolkitError (exit 3) where the network is forbidden or fails, or gives something else.
    """
    if full_place().exists():
        return
    content = _download(MEDQUAD_FULL_URL, MEDQUAD_FULL, offline=offline)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as members:
            count = sum(name.endswith(".xml") for name in members.namelist())
    except (zipfile.BadZipFile, NotImplementedError, EOFError, ValueError) as exc:
        raise _missing(f"what {MEDQUAD_FULL_URL} gave is not a whole zip file: {exc}", MEDQUAD_FULL) from None
    if not count:
        raise _missing(f"the zip of {MEDQUAD_FULL_URL} holds no XML document", MEDQUAD_FULL)
    _keep(content, MEDQUAD_FULL, f"{count:,} documents")


def _keep(content: bytes, place: Path, what: str) -> None:
    with writing(place) as file:
        file.write(content)
    console.done(f"MedQuAD's {what} (CC BY 4.0) are in {place}")


def _download(url: str, place: Path, *, offline: bool) -> bytes:
    """Return what the address serves, in memory; raises ToolkitError (exit 3) unless it is complete."""
    if offline:
        raise _missing(f"`{place}` is not there, and {forbidden_by()} forbids downloading it", place)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT) as answer:
            length = int(answer.headers.get("Content-Length") or 0)
            content = io.BytesIO()
            with console.progress("downloading MedQuAD", length, "B") as bar:
                while piece := answer.read(1 << 16):
                    content.write(piece)
                    bar.advance(len(piece))
                    if content.tell() > MAX_DOWNLOAD:
                        raise _missing(
                            f"{url} sends more than {console.size(MAX_DOWNLOAD)}, which is not MedQuAD", place
                        )
    except urllib.error.HTTPError as exc:
        raise _missing(f"{url} answers {exc.code} {exc.reason}", place) from None
    except (OSError, http.client.HTTPException) as exc:  # URLError, timeouts and broken connections are OSErrors
        raise _missing(f"{url} cannot be downloaded: {getattr(exc, 'reason', None) or exc}", place) from None
    if content.tell() < length:  # a connection that closes early ends a read without an error
        raise _missing(f"the download of {url} stopped after {content.tell():,} of {length:,} bytes", place)
    return content.getvalue()


def _csv_inside(archive: bytes) -> bytes:
    """Return the CSV of MedQuAD's zip; raises ToolkitError (exit 3) unless both have the SHA-256 they should have."""
    if archive.lstrip()[:1] == b"<":
        raise _missing(f"{MEDQUAD_URL} gave an HTML page instead of a zip file (a login page or a proxy?)")
    digest = sha256(archive).hexdigest()
    try:
        with zipfile.ZipFile(io.BytesIO(archive)) as members:
            if digest != ZIP_SHA256:
                raise _missing(f"{MEDQUAD_URL} has changed: sha256 {digest[:12]}… instead of {ZIP_SHA256[:12]}…")
            # Chosen by content: macOS left a second file of almost the same name next to it.
            for member in members.infolist():
                if member.filename.lower().endswith(".csv") and member.file_size <= MAX_DOWNLOAD:
                    content = members.read(member)
                    if sha256(content).hexdigest() == MEDQUAD_SHA256:
                        return content
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as exc:
        raise _missing(f"what {MEDQUAD_URL} gave is not a whole zip file: {exc}") from None
    raise _missing(f"the zip of {MEDQUAD_URL} holds no CSV with sha256 {MEDQUAD_SHA256[:12]}…")


def by_hand(place: Path) -> str:
    """Say how to fetch it without this program."""
    return f"download {'and unzip ' * (place == MEDQUAD_CSV)}it by hand to `{place}`"


def _missing(message: str, place: Path = MEDQUAD_CSV) -> ToolkitError:
    return ToolkitError(
        message, hint=f"{by_hand(place)}, or set `data.source` to a file of your own", exit_code=MISSING
    )
