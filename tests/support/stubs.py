"""A small Llama that cannot be loaded: config.json, tokenizer and index, as a hub shows them before a download."""

import json
from pathlib import Path

from tests.support import bases
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.stage import Check
from toolkit.export.foresight import look_ahead
from toolkit.model.families import family_of
from toolkit.model.families.family import Layout

WIDE = {"hidden_size": 256, "intermediate_size": 512, "vocab_size": 512}
SHARD = "model-00001-of-00002.safetensors"


def save_stub(folder: Path) -> Path:
    """Write the three files."""
    bases.save_vocabulary(folder)
    (folder / "config.json").write_text(json.dumps({**bases.CONFIGS["llama"], **WIDE}), encoding="utf-8")
    save_index(folder)
    return folder


def layouts(folder: Path) -> list[Layout]:
    """List the places that a folder's config.json promises."""
    family, model = family_of(folder)
    return family.layouts(model)


def save_index(folder: Path, *more: str, without: str = "no such tensor") -> None:
    """Write the index of what config.json promises, with `more` names, `without` those that hold a text."""
    names = [name for name in (*(layout.source for layout in layouts(folder)), *more) if without not in name]
    index = {"weight_map": dict.fromkeys(names, SHARD)}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")


def change_vocabulary(folder: Path, **values: object) -> None:
    """Replace parts of the model in a folder's tokenizer.json."""
    path = folder / "tokenizer.json"
    layout = json.loads(path.read_text(encoding="utf-8"))
    layout["model"] |= values
    path.write_text(json.dumps(layout), encoding="utf-8")


def settings(base: Path | str, *changes: str) -> Config:
    """Return the settings of a run on a base."""
    return build({"model": {"base": str(base)}}, changes)


def asked(base: Path | str, *changes: str, offline: bool = True) -> Check:
    """Return what is said of a base before it is trained."""
    found = look_ahead(settings(base, *changes), offline)
    assert found is not None
    return found


def refused(base: Path | str, *changes: str, offline: bool = True) -> Check:
    """Return the refusal of a base before it is trained."""
    found = asked(base, *changes, offline=offline)
    assert found.ok is False and found.name == "export"
    assert "train.allow_unexportable" in found.fix
    return found
