"""Export: base model and LoRA adapter to any number of GGUF quantizations, in one pass over the base.

A few blocks of rows are in memory at a time; no merged copy is ever written. Each result is byte for byte what
llama.cpp's converter and quantizer would have made of the merged model, and appears only when all are complete.
"""

import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

from gguf import GGMLQuantizationType as Type

from toolkit.core import console, hardware, output_settings
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import clear_stale
from toolkit.core.manifest import Outcome
from toolkit.export import effect, quantize, streaming
from toolkit.export.carry import carry
from toolkit.export.foreign_template import is_of_base
from toolkit.export.gpu_quantizer import GpuQuantizer, beside
from toolkit.export.header import header, shared_metadata
from toolkit.export.importance import Importance
from toolkit.export.planned_tensor import PlannedTensor
from toolkit.export.planning import ExportPlan, check_disk, check_head, known, plan, say_vocabulary
from toolkit.export.vocab import chat_check, trained_ids
from toolkit.formats import gguf_writer
from toolkit.formats.checkpoint import Floats
from toolkit.formats.gguf_writer import Metadata
from toolkit.model.hub_range import HubShards
from toolkit.prompt.format import PromptFormat
from toolkit.prompt.tokenizer_json import keeping_layouts

__all__ = ["ExportPlan", "PlannedTensor", "check_chats", "export", "plan"]


def export(
    base: Path,
    adapter: Path | None,
    targets: dict[str, Path],
    template: str,
    name: str,
    *,
    overrides: Mapping[str, str] | None = None,
    imatrix: Importance = None,
    prompt_format: PromptFormat | None = None,
    shards: HubShards | None = None,
) -> Outcome:
    """Write base + adapter as GGUF files in one pass over the base: one per quantization, each complete or not at all.

    `base` is a folder of safetensors with config.json and tokenizer.json; `targets` maps quantizations to files;
    `template` is the Jinja chat template, `name` the model's name in the metadata; `overrides` and `imatrix` are those
    of `plan`; `prompt_format` is that of a model that was trained here. With `shards`, whose folder `base` is, weights
    are fetched piece by piece, and an export that was interrupted continues. Raises ToolkitError for damaged input,
    weights that a type cannot hold, chats that llama.cpp would read as different tokens than training did, or too
    little disk space; the targets are then unchanged.
    """
    started = time.monotonic()
    targets = {known(quantization): path for quantization, path in targets.items()}
    _check_targets(targets)
    clear_stale(targets.values())
    with keeping_layouts():
        planned = plan(base, adapter, list(targets), overrides=overrides, imatrix=imatrix)
        if planned.model.ignored:
            console.warn(f"llama.cpp computes this model without {planned.model.ignored}")
        if shards is None:
            streaming.discard(targets)
            check_head(base, planned)
        common, trained = check_chats(base, adapter, planned, template, name, prompt_format)
    headers = {quantization: header(planned, common, quantization) for quantization in targets}
    sizes = {targets[key]: len(headers[key]) + planned.bytes[key] for key in targets}
    check_disk(sizes, streaming.begun(targets.values()) if shards else 0)
    effect.say_effect(planned.tensors, planned.gap, base_here=shards is None)

    def check(place: Path) -> None:
        if shards is not None:
            check_head(base, planned, streaming.same_on_hub(shards))
        chat_check.check_chat(place, template, trained)

    with beside(planned.tensors, imatrix, hardware.cores()) as gpu, quantize.pool() as pool:
        if shards is not None:
            written = streaming.write_streamed(planned, shards, adapter, headers, targets, gpu, pool, check)
        else:
            written = _write(planned, imatrix or {}, headers, targets, gpu, pool, check)
    figures = {key: _figures(planned, key, written[key], gpu) for key in targets}
    seconds = round(time.monotonic() - started, 3)
    return Outcome(list(targets.values()), {**figures, "seconds": seconds, "tensors": len(planned.tensors)})


def check_chats(
    base: Path, adapter: Path | None, planned: ExportPlan, template: str, name: str, prompt_format: PromptFormat | None
) -> tuple[Metadata, trained_ids.Training]:
    """Return the metadata that all files share, with which llama.cpp reads chats as training did, and the training.

    Says whose vocabulary it is. Raises ToolkitError if chats cannot have the ids of training.
    """
    say_vocabulary(base, planned)
    trained = trained_ids.training(planned.tokenizer, base, prompt_format)
    if prompt_format is None and is_of_base(template, base):
        trained = replace(trained, template_of_base=True)
    metadata = shared_metadata(base, adapter, planned, template, name)
    common = chat_check.settle(planned.model.architecture, metadata, trained)
    chat_check.warn_of_text(template, trained)
    return common, trained


def _write(
    planned: ExportPlan,
    imatrix: Mapping[str, Floats],
    headers: Mapping[str, bytes],
    targets: Mapping[str, Path],
    gpu: GpuQuantizer,
    pool: ThreadPoolExecutor,
    check: Callable[[Path], None],
) -> dict[str, tuple[int, str]]:
    """Write all files side by side, from their beginning to their end; return the bytes and SHA-256 of each."""
    read = sum(tensor.stored.size for tensor in planned.tensors if tensor.stored)
    with ExitStack() as stack:
        files = {key: stack.enter_context(gguf_writer.gguf_file(path)) for key, path in targets.items()}
        for quantization, head in headers.items():
            files[quantization].write(head)
        with console.progress("export", read, "B") as progress:
            carry(planned, planned.tensors, imatrix, files, pool, gpu, progress)
        for file in files.values():  # renamed only when all of them are on the disk
            file.sync()
        for file in files.values():
            check(file.place)
    return {key: (file.size, file.sha256) for key, file in files.items()}


def _check_targets(targets: Mapping[str, Path]) -> None:
    if not targets:
        raise ToolkitError(
            "no quantization to export", hint=f"known: {', '.join(output_settings.QUANTIZATIONS)}", exit_code=USAGE
        )
    paths = [path.resolve() for path in targets.values()]
    for path in paths:
        if path.is_dir() or paths.count(path) > 1:
            what = "is a folder" if path.is_dir() else "is named for more than one quantization"
            raise ToolkitError(f"output `{path}` {what}", hint="give each quantization a file", exit_code=USAGE)


def _figures(planned: ExportPlan, quantization: str, written: tuple[int, str], gpu: GpuQuantizer) -> dict[str, object]:
    kinds = Counter(tensor.types[quantization].name for tensor in planned.tensors)
    return {
        "bytes": written[0],
        "sha256": written[1],
        "bits_per_weight": round(8 * planned.bytes[quantization] / planned.parameters, 3),
        "types": dict(kinds.most_common()),
        "quantized_by": {kind: gpu.writers(Type[kind]) for kind, _ in kinds.most_common() if kind != "F32"},
        "fallbacks": sum(quantization in tensor.fallbacks for tensor in planned.tensors),
    }
