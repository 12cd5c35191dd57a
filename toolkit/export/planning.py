"""Plan an export: every tensor's source, place and type, and the size of every file, from configs and headers alone."""

import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path

from toolkit.core import console, hardware, output_settings
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.export.adapter import weights as adapters
from toolkit.export.adapter.deltas import EMBEDDING, HEAD, Adapter, Change
from toolkit.export.adapter.names import plain_model
from toolkit.export.importance import Importance, check_importance, expected_importance
from toolkit.export.planned_tensor import PlannedTensor, working_size
from toolkit.export.vocab.tokenizer_source import TokenizerSource, tokenizer_source
from toolkit.formats import checkpoint, ggml_types, gguf_writer
from toolkit.formats.safetensors_header import TensorInfo
from toolkit.model import families, memory
from toolkit.model.families.family import Family, Layout
from toolkit.model.model_config import ModelConfig
from toolkit.model.tensor_types import tensor_types


@dataclass(frozen=True)
class ExportPlan:
    """What an export will write: tensors in file order, bytes of tensor data per quantization, peak memory in bytes.

    `spare_head` is the lm_head that a tied model's checkpoint may hold besides its embedding, with that embedding; it
    is not written. `tokenizer` says whose tokenizer the files get, `new_rows` the number of tokens that the
    adapter's embedding has more than the base's, `gap` what the adapter names but lacks.
    """

    family: Family
    model: ModelConfig
    tensors: tuple[PlannedTensor, ...]
    bytes: dict[str, int]
    memory: int
    parameters: int
    spare_head: tuple[TensorInfo, TensorInfo] | None
    tokenizer: TokenizerSource
    new_rows: int
    gap: str

    @property
    def vocabulary(self) -> Path:
        """The folder whose tokenizer the files get."""
        return self.tokenizer.folder


@dataclass(frozen=True)
class Start:
    """A base as a plan sees it: family and sizes, the tensors that it holds, and the place of each."""

    family: Family
    model: ModelConfig
    stored: Mapping[str, TensorInfo]
    layouts: list[Layout]


def plan(
    base: Path,
    adapter: Path | None,
    quantizations: Sequence[str],
    *,
    overrides: Mapping[str, str] | None = None,
    imatrix: Importance = None,
    weighed: bool = False,
) -> ExportPlan:
    """Say what an export would write, reading nothing but configs and headers.

    `overrides` map regular expressions to ggml types (`tensor_types`); `imatrix` maps names in GGUF to one value
    an input. Both decide on types; `weighed` means an importance matrix that will be computed later.
    Raises ToolkitError for everything that can be known beforehand: an unsupported architecture or adapter, absent or
    truncated files, tensors that are missing, unknown or of another shape.
    """
    family, model = families.family_of(base)
    stored = plain_model(checkpoint.open_folder(base), base)
    layouts = families.checked_layouts(base, family, model, stored)
    adapted = None
    if adapter is not None:
        shapes = {layout.source: layout.stored_shape for layout in layouts}
        adapted = adapters.open_adapter(adapter, shapes, model)
    source = tokenizer_source(base, adapter, adapted.vocabulary if adapted else model.vocab)
    start = Start(family, model, stored, layouts)
    return arrange(start, adapted, source, quantizations, overrides=overrides, imatrix=imatrix, weighed=weighed)


def arrange(
    start: Start,
    adapted: Adapter | None,
    source: TokenizerSource,
    quantizations: Sequence[str],
    *,
    overrides: Mapping[str, str] | None = None,
    imatrix: Importance = None,
    weighed: bool = False,
) -> ExportPlan:
    """Give every tensor of a base and an adapter its source, place and types; raises what `plan` raises."""
    names = [known(name) for name in quantizations]
    family, model, stored, layouts = start.family, start.model, start.stored, start.layouts
    spare_head = (stored[HEAD], stored[EMBEDDING]) if model.tied and HEAD in stored else None
    changes: Mapping[str, Change] = {}
    replaced: Mapping[str, TensorInfo] = {}
    new_rows, gap = 0, ""
    if adapted is not None:
        # An embedding that is no longer the output matrix is written twice: as it was, and as trained.
        stored = {**stored, **({HEAD: stored[EMBEDDING]} if model.tied else {}), **adapted.replaced}
        new_rows, gap = adapted.vocabulary - model.vocab, adapted.gap
        model = replace(model, vocab=adapted.vocabulary, tied=adapted.tied)
        layouts, changes, replaced = family.layouts(model), adapted.changes, adapted.replaced
    computed = [Layout("", name, values.shape) for name, values in family.computed(model).items()]
    layouts = [*computed, *layouts]
    written = {layout.name: layout.shape for layout in layouts}
    if weighed and imatrix is None:
        imatrix = expected_importance(written)
    chosen = {}
    for name in names:
        chosen[name] = tensor_types(name, written, model, overrides, has_imatrix=imatrix is not None)
        check_importance(name, chosen[name], written, imatrix)
    tensors = [
        PlannedTensor(
            layout,
            stored.get(layout.source),
            layout.source in replaced,
            changes.get(layout.source),
            {name: chosen[name][layout.name][0] for name in names},
            frozenset(name for name in names if chosen[name][layout.name][1]),
        )
        for layout in layouts
    ]
    sizes = {
        name: sum(gguf_writer.padded(ggml_types.stored_size(tensor.types[name], tensor.shape)) for tensor in tensors)
        for name in names
    }
    largest = max(working_size(tensor) for tensor in tensors)
    return ExportPlan(
        family=family,
        model=model,
        tensors=tuple(tensors),
        bytes=sizes,
        memory=memory.total(memory.export_peak(largest, hardware.cores())),
        parameters=sum(prod(tensor.shape) for tensor in tensors),
        spare_head=spare_head,
        tokenizer=source,
        new_rows=new_rows,
        gap=gap,
    )


def check_disk(sizes: Mapping[Path, int], held: int = 0) -> None:
    """Raise ToolkitError unless there is room for files of these sizes, of which `held` bytes are on the disk already.

    Former files stay until the new ones are complete, so there must be room for both.
    """
    needed: Counter[int] = Counter()
    places: dict[int, Path] = {}
    for path, size in sizes.items():
        place = next(parent for parent in path.resolve().parents if parent.exists())
        device = place.stat().st_dev
        needed[device] += size
        places[device] = place
    for device, size in needed.items():
        free = shutil.disk_usage(places[device]).free + held
        if free < size:
            raise ToolkitError(
                f"the export needs {console.size(size)} in `{places[device]}`, but only {console.size(free)} is free",
                hint="free some space, choose fewer quantizations, or set another folder with `--set run.folder=DIR`",
            )


def check_head(
    base: Path, planned: ExportPlan, same: Callable[[TensorInfo, TensorInfo], bool] = checkpoint.same
) -> None:
    """Raise ToolkitError if it is unclear which head is meant; `same` compares two tensors.

    A tied model may carry a copy of its embedding as lm_head; one that differs is not a copy.
    """
    if planned.spare_head and not same(*planned.spare_head):
        raise ToolkitError(
            f"the base model in `{base}` has an lm_head that differs from its embedding, though config.json ties them",
            hint="set tie_word_embeddings to false in config.json if the lm_head was trained",
        )


def say_vocabulary(base: Path, planned: ExportPlan) -> None:
    """Say whose vocabulary the output gets, if it is not simply the base's."""
    planned.tokenizer.say()
    if planned.new_rows and planned.tokenizer.trained == base:
        console.warn(
            f"the adapter changes the vocabulary by {planned.new_rows:+} rows, but has no tokenizer that names them"
        )


def known(name: str) -> str:
    """Return a quantization's usual spelling; raises ToolkitError with the list for an unknown name."""
    try:
        return output_settings.check_quantization(name)
    except ValueError as exc:
        message, _, names = str(exc).partition(" (known: ")
        raise ToolkitError(message, hint=f"known: {names.rstrip(')')}", exit_code=USAGE) from None
