"""What the doctor asks about the data."""

import urllib.request
from pathlib import Path

from toolkit.core.config import Config
from toolkit.core.input_settings import MEDQUAD_CSV, MEDQUAD_URL
from toolkit.core.stage import Check

SECONDS = 10.0  # that the server of the data has to answer


def data(config: Config, *, offline: bool) -> Check:
    """Check that the data file is there, or can be downloaded."""
    if config.data.source == "medquad":
        return _medquad(offline=offline)
    path = Path(config.data.source).expanduser()
    fix = 'set `data.source` to your file of questions and answers, or to "medquad"'
    if not path.exists():
        return Check("data", False, f"there is no file `{path}`", fix)
    if not path.is_file():
        return Check("data", False, f"`{path}` is not a file", fix)
    if path.stat().st_size == 0:
        return Check("data", False, f"`{path}` is empty", fix)
    with path.open("rb") as file:
        file.read(1)  # a file without read permission fails here
    return Check("data", True, f"{path}, {path.stat().st_size:,} bytes", "")


def _medquad(*, offline: bool) -> Check:
    if MEDQUAD_CSV.is_file():
        return Check("data", True, f"MedQuAD in {MEDQUAD_CSV}", "")
    fix = f"download and unzip it by hand to {MEDQUAD_CSV}, or set `data.source` to a file of your own"
    if offline:
        return Check("data", False, f"`{MEDQUAD_CSV}` is not there, and --offline forbids to download it", fix)
    try:
        request = urllib.request.Request(MEDQUAD_URL, method="HEAD")
        with urllib.request.urlopen(request, timeout=SECONDS) as answer:
            size = int(answer.headers.get("Content-Length") or 0)
    except (OSError, ValueError) as exc:
        return Check("data", False, f"MedQuAD cannot be downloaded: {getattr(exc, 'reason', None) or exc}", fix)
    return Check("data", True, f"MedQuAD can be downloaded ({size / 1e6:.1f} MB)", "")
