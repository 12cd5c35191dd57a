"""Where a model comes from: each step from the data's file to the digest in Ollama, with its hashes."""

from dataclasses import dataclass
from pathlib import Path

from toolkit.core.manifest import FileRecord
from toolkit.report.facts import Facts

MOST_FILES = 40  # of a step that are listed


@dataclass(frozen=True)
class Link:
    """One step: its files with their SHA-256, or why there are none."""

    title: str
    files: list[tuple[str, str]]
    missing: str = ""


def chain(facts: Facts) -> list[Link]:
    """Return the steps in order; a step that this run did not do says so."""
    prepare, train, export, validate, register = (
        facts.record(name) for name in ("prepare", "train", "export", "validate", "register")
    )
    base = [(facts.report.base.label, facts.report.base.commit)] if facts.report else []
    weights = [file for file in export.inputs if not file.path.startswith(("adapter/", "data/"))] if export else []
    links = [
        Link("Data", _names(prepare.inputs) if prepare else [], "not prepared in this run"),
        Link("Prepared records", _names(prepare.outputs) if prepare else [], "not prepared in this run"),
        Link("Base model", [*base, *_names(weights)], "not known before the export"),
        Link("Adapter" if train else "Adapter, not trained in this run", _adapter(facts), "not there yet"),
        Link("GGUF files", _names(export.outputs) if export else [], "not exported"),
        Link("Comparison with the trained model", _names(validate.outputs) if validate else [], "not validated"),
    ]
    evaluate = facts.record("evaluate")
    if evaluate:
        links.append(Link("Evaluation", _names(evaluate.outputs)))
    tags = (register.figures.get("tags") or {}) if register else {}
    name = register.figures.get("name", "") if register else ""
    served = [
        entry
        for tag, one in tags.items()
        for entry in (
            (f"{name}:{tag}, digest", str(one.get("digest", ""))),
            ("the GGUF file that the server holds", str(one.get("stored_sha256", ""))),
        )
    ]
    links.append(Link("Ollama", served[:MOST_FILES], "not registered"))
    return links


def _names(files: list[FileRecord]) -> list[tuple[str, str]]:
    """Return names and hashes; a path outside the run's folder says where this machine keeps its files."""
    found = [(Path(file.path).name if file.path.startswith("/") else file.path, file.sha256) for file in files]
    more = len(found) - MOST_FILES
    return [*found[:MOST_FILES], (f"and {more} more, in manifest.json", "")] if more > 0 else found


def _adapter(facts: Facts) -> list[tuple[str, str]]:
    """Return the adapter's two files as training left them, or as the export read them."""
    train, export = facts.record("train"), facts.record("export")
    files = train.outputs if train else export.inputs if export else []
    return _names([file for file in files if Path(file.path).name.startswith("adapter_")])
