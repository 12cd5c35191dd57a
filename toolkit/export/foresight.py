"""Whether a model can be exported, asked before it is trained: the exporter's own steps, on headers alone.

config.json, the tokenizer and the index or headers of the safetensors are read, never a weight. The adapter is the one
that the settings will make.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gguf import Keys

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.network import is_offline
from toolkit.core.run_folder import folder_of
from toolkit.core.stage import Check
from toolkit.export.adapter.foreseen import foreseen_adapter
from toolkit.export.header import shared_metadata
from toolkit.export.planning import ExportPlan, Start, arrange
from toolkit.export.vocab import chat_check, trained_ids
from toolkit.export.vocab.tokenizer_source import TokenizerSource
from toolkit.formats import bnb_4bit, checkpoint
from toolkit.formats.gguf_reader import open_gguf
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model import base as bases
from toolkit.model import families, hub_shards, merge_base
from toolkit.model.families.checks import check_layers
from toolkit.model.families.family import Family
from toolkit.model.gguf_base import other_architecture
from toolkit.model.gguf_config import read_base
from toolkit.model.kinds import architecture
from toolkit.model.model_config import ModelConfig, read_config
from toolkit.ollama import renderers
from toolkit.prompt.format import prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer
from toolkit.prompt.tokenizer_json import keeping_layouts

NAME = "export"
ADAPTER_ALONE = "train.allow_unexportable = true trains an adapter for use elsewhere"


@dataclass(frozen=True)
class Foreseen:
    """What the export of a trained model will be: its plan, llama.cpp's name of its vocabulary, and remarks."""

    plan: ExportPlan
    vocabulary: str
    remarks: str


def look_ahead(config: Config, offline: bool) -> Check | None:
    """Say whether a model that these settings train can be exported; a refusal has the reason, and what to do.

    Of a hub id only small files are fetched, and the header of its weights where they are one file. None where nothing
    is known: the base is not there, or is a GGUF file that will be converted first.
    """
    label = bases.merge_label(config.model, config.export)
    try:
        folder = bases.small_files(label, bases.revision_of(label, config.model), offline=offline)
        if folder is None:
            _check_gguf(label)
            return None
        if bases.local_path(label) is None and not (offline or is_offline()):
            folder = hub_shards.with_beginning(label, bases.revision_of(label, config.model), folder)
        merge_base.check_merge_base(bases.Base(label, folder), config.export)
        with keeping_layouts():
            found = foresee(folder, config)
    except ToolkitError as exc:
        alone = "" if exc.exit_code == USAGE else ADAPTER_ALONE  # settings that are wrong are wrong for training too
        return Check(NAME, False, exc.message, "; or ".join(filter(None, [exc.hint, alone])))
    sizes = ", ".join(f"{name} {console.size(size)}" for name, size in found.plan.bytes.items())
    said = f"{found.plan.family.architecture}, tokenizer {found.vocabulary}: {sizes}"
    return Check(NAME, None if found.remarks else True, "; ".join(filter(None, [said, found.remarks])), "")


def foresee(folder: Path, config: Config) -> Foreseen:
    """Return what the export of a model will be that these settings train on the base in a folder.

    Raises the ToolkitError that the export would raise; if the base is the reason, its hint lists the families.
    """
    form, wanted, source = prompt_format(config.prompt), config.export, TokenizerSource(folder, folder)
    label = bases.merge_label(config.model, wanted)
    with _named(folder, label):
        start = open_base(folder)
    shapes = {layout.source: layout.stored_shape for layout in start.layouts}
    adapted = foreseen_adapter(config.train, shapes, start.model, folder_of(config).adapter)
    planned = arrange(start, adapted, source, wanted.quantizations, overrides=wanted.overrides, weighed=wanted.imatrix)
    template = chat_template(form, bos=bool(load_tokenizer(folder, form).bos_text))
    with _named(folder, label), console.without_notes():
        metadata = shared_metadata(folder, None, planned, template, config.run.name)
        chat_check.settle(planned.family.architecture, metadata, trained_ids.training(source, folder, form))
    remarks = [renderers.said_of(planned.family.architecture)]
    if planned.model.ignored:
        remarks.append(f"llama.cpp computes this model without {planned.model.ignored}")
    kind, pre = (str(metadata[key][0]) for key in (Keys.Tokenizer.MODEL, Keys.Tokenizer.PRE))
    return Foreseen(planned, pre if kind == "gpt2" else f"SentencePiece ({kind})", "; ".join(filter(None, remarks)))


@contextlib.contextmanager
def _named(folder: Path, label: str) -> Iterator[None]:
    """Complete the error about a base: by its 16-bit repository, and by the families that can be exported.

    A base of another family whose prompt Ollama would override is doubly lost: that is said too.
    """
    try:
        yield
    except ToolkitError as exc:
        config: dict[str, Any] = {}
        with contextlib.suppress(ToolkitError):
            config = read_config(folder)
        instead = bases.unquantized(label) if bnb_4bit.refused(config) else ""
        hints = [f"model.base = {instead}" if instead else "", exc.hint]
        if families.supported() not in exc.hint:
            hints.append(f"families that can be exported: {families.supported()}")
        said = [exc.message, renderers.said_of(architecture(config) or "")]
        raise ToolkitError("; ".join(filter(None, said)), hint="; ".join(filter(None, hints))) from None


def open_base(folder: Path) -> Start:
    """Open a base by its headers, or where its weights are absent by what config.json and the index promise."""
    family, model = families.family_of(folder)
    known = checkpoint.holds_weights(folder) or checkpoint.shows_tensors(folder)
    stored = checkpoint.open_folder(folder) if known else _promised(folder, family, model)
    return Start(family, model, stored, families.checked_layouts(folder, family, model, stored))


def _promised(folder: Path, family: Family, model: ModelConfig) -> dict[str, TensorInfo]:
    names = checkpoint.promised(folder)
    if names:
        check_layers(folder, model, names)
    shapes = {layout.source: layout.stored_shape for layout in family.layouts(model)}
    path = folder / checkpoint.SINGLE
    return {name: TensorInfo(name, path, "BF16", shapes.get(name, ()), 0, 0) for name in names or shapes}


def _check_gguf(label: str) -> None:
    """Raise ToolkitError for a GGUF file that is not converted yet and whose architecture cannot be exported."""
    try:
        path = bases.local_path(label)
        if path is None or not path.is_file():
            return
        opened = open_gguf(path)
        if read_base(path, opened) is not None:
            return
    except ToolkitError:  # absent or damaged: the base's own check reports it
        return
    refusal = other_architecture(path, opened)
    said = [refusal.message, renderers.said_of(str(opened.metadata.get("general.architecture")))]
    raise ToolkitError("; ".join(filter(None, said)), hint=refusal.hint, exit_code=refusal.exit_code)
