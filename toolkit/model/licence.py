"""The licence that a base's own files state."""

import re
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.model.base import tokenizer_folder

UNNAMED = ("other", "unknown")  # what a card says of a licence that the hub has no identifier for


def stated_licence(label: str, revision: str = "") -> str:
    """Name the licence that a base's files on this machine state; empty where they state none or are not here."""
    try:
        folder = tokenizer_folder(label, revision)
    except ToolkitError:
        return ""
    return licence_of(folder) if folder else ""


def licence_of(folder: Path) -> str:
    """Name a base's licence from its files: the model card's `license`, else a licence file's first line.

    A card whose `license` is `other` names it as `license_name`.
    """
    card = folder / "README.md"
    if card.is_file():
        text = card.read_text(encoding="utf-8", errors="replace")
        found = dict(re.findall(r"^(license|license_name):[ \t]*[\"']?([^\s\"']+)[\"']?\s*$", text, re.MULTILINE))
        named = found.get("license", "")
        if named.lower() in UNNAMED:
            named = found.get("license_name", "")
        if named:
            return str(named)
    for path in sorted(folder.glob("LICENSE*")):
        lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        if lines:
            return lines[0].strip()
    return ""
