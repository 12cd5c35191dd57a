"""Carry out an export outside a run: GGUF files, a merged folder, or the adapter alone."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import scratch_folder
from toolkit.core.output_settings import check_quantization
from toolkit.export.ordering import Order
from toolkit.prompt.format import prompt_format

if TYPE_CHECKING:
    from toolkit.model.hub_range import HubShards


def carry_out(
    order: Order, form: str, quantizations: tuple[str, ...], output: str | None, *, dry_run: bool, force: bool
) -> dict[str, Any]:
    """Write `OUTPUT/NAME-QUANT.gguf` and a Modelfile, `OUTPUT/NAME-lora.gguf` or the folder `OUTPUT/NAME-merged`.

    `form` is `gguf`, `safetensors` or `lora-gguf`. Returns files with their figures, and the `next` command where there
    is one. Raises ToolkitError rather than overwrite, unless `force`.
    """
    from toolkit.export import foreign, leftovers, streaming
    from toolkit.model import merge_base

    config = order.config
    if output is None:
        raise ToolkitError(
            "--output is missing: it names the folder for the files", hint="--output DIR", exit_code=USAGE
        )
    if quantizations and form != "gguf":
        raise ToolkitError(f"--quant has no meaning for --format {form}", hint="leave it out", exit_code=USAGE)
    if order.adapter is None and form == "lora-gguf":
        raise ToolkitError("a whole model has no adapter to write", hint="--format gguf", exit_code=USAGE)
    try:
        names = [check_quantization(name) for name in quantizations] or config.export.quantizations
    except ValueError as exc:
        raise ToolkitError(str(exc), exit_code=USAGE) from None
    ends = {"safetensors": {"safetensors": "merged"}, "lora-gguf": {"lora": "lora.gguf"}}
    ending = ends.get(form, {quantization: f"{quantization}.gguf" for quantization in names})
    targets = {key: Path(output) / f"{order.name}-{end}" for key, end in ending.items()}
    leftovers.clear_export(Path(output), order.name)
    present = [str(path) for path in leftovers.finished(targets.values(), Path(output), order.name)]
    if present and not force:
        raise ToolkitError(f"already there: {', '.join(present)}", hint="choose another --output, or use --force")
    settings = config.model
    changed: dict[str, Any] = {"base": order.base, "revision": order.revision}
    if order.base != settings.base:  # the 16-bit weights that the settings name belong to their own base
        changed["base_16bit"] = ""
    model = settings.model_copy(update=changed)
    with (
        foreign.in_options() if order.prompt_format is None else contextlib.nullcontext(),
        _as_peft(order.adapter) as adapter,
    ):
        ready = replace(order, adapter=adapter)
        found, shards = (
            streaming.base_of(model, config.export, adapter, targets)
            if form == "gguf" and not dry_run
            else (merge_base.resolve(model, config.export), None)
        )
        if found.label != order.base:
            console.info(f"merging into its 16-bit weights: {found.label}")
        template = order.template(found.folder)
        if dry_run:
            return _preview(ready, form, targets, found.folder, template[0])
        with leftovers.noting_export(Path(output), order.name):
            return _write(ready, form, targets, found.folder, template, shards, force=force)


@contextlib.contextmanager
def _as_peft(adapter: Path | None) -> Iterator[Path | None]:
    """Yield an adapter's folder as PEFT would have saved it; MLX's is converted into a temporary folder."""
    from toolkit.export.adapter import mlx

    if adapter is None or not mlx.is_mlx(adapter):
        yield adapter
        return
    console.info(f"adapter: MLX format, converted to PEFT's ({adapter / mlx.MLX_WEIGHTS})")
    with scratch_folder("mlx") as folder:
        mlx.convert_mlx(adapter, folder)
        yield folder


def _write(
    order: Order,
    form: str,
    targets: dict[str, Path],
    base: Path,
    template: tuple[str, bool],
    shards: "HubShards | None",
    *,
    force: bool,
) -> dict[str, Any]:
    from toolkit import export as room
    from toolkit.export import foreign_modelfile
    from toolkit.export.vocab import pretokenizer_parity

    text, ours = template
    extra: dict[str, Any] = {}
    if form == "gguf":
        pretokenizer_parity.warn_if_split_differs(base, None)
        outcome = room.export(
            base,
            order.adapter,
            targets,
            text,
            order.name,
            overrides=order.config.export.overrides,
            prompt_format=order.prompt_format,
            shards=shards,
        )
        figures = {key: outcome.figures[key] for key in targets}
        if order.prompt_format is None:
            used = prompt_format(order.config.prompt) if ours else None
            extra = foreign_modelfile.write_beside(targets, order.config, order.name, text, used, force=force)
    elif form == "safetensors":
        from toolkit.export.merged_model import export_merged

        outcome = export_merged(base, order.adapter, targets["safetensors"], text)
        figures = {"safetensors": outcome.figures}
    else:
        from toolkit.export.lora_gguf import export_lora

        assert order.adapter is not None  # refused above
        outcome = export_lora(base, order.adapter, targets["lora"], order.name)
        figures = {"lora": outcome.figures}
    files = {key: {"path": str(targets[key]), **figures[key]} for key in targets}
    return {"files": files, "seconds": outcome.figures["seconds"], **extra}


def _preview(order: Order, form: str, targets: dict[str, Path], base: Path, template: str) -> dict[str, Any]:
    """Say what would be written, for GGUF files with every tensor's type; refuse and warn as the export would."""
    from toolkit.export import check_chats, plan, preview
    from toolkit.export.effect import say_effect

    overrides = order.config.export.overrides
    planned = plan(base, order.adapter, list(targets) if form == "gguf" else ["F16"], overrides=overrides)
    say_effect(planned.tensors, planned.gap)
    if form == "gguf":
        check_chats(base, order.adapter, planned, template, order.name, order.prompt_format)
        files = {key: {"path": str(path), "bytes": planned.bytes[key]} for key, path in targets.items()}
        return {"files": files, "dry_run": True, "plan": preview.describe_export(planned)}
    if form == "safetensors":
        from toolkit.export.merged_model import size

        count = sum(size(tensor) for tensor in planned.tensors if tensor.stored)
    else:
        from toolkit.export.lora_gguf import size_of

        assert order.adapter is not None  # refused above
        count = size_of(base, order.adapter, planned)
    return {"files": {key: {"path": str(path), "bytes": count} for key, path in targets.items()}, "dry_run": True}
