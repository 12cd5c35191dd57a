"""Exports outside a run folder: an adapter trained elsewhere, a whole model, or this run's own in another form."""

import contextlib
import shlex
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.config_file import build, load_config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.files import scratch_folder
from toolkit.core.output_settings import check_quantization
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import chat_template
from toolkit.prompt.tokenizer import load_tokenizer

if TYPE_CHECKING:
    from toolkit.model.hub_range import HubShards


@dataclass(frozen=True)
class Order:
    """What to export, of which adapter and base, under which name and with which chat template.

    `adapter` is None for a whole model. `template` takes the base's folder; it returns the text, and whether it is
    that of our settings. `prompt_format` is that of a model that was trained here, else None.
    """

    adapter: Path | None
    base: str
    revision: str
    name: str
    template: Callable[[Path], tuple[str, bool]]
    config: Config
    prompt_format: PromptFormat | None = None


def of_adapter(adapter: Path, base: str | None, settings: str, overrides: tuple[str, ...]) -> Order:
    """Order the export of an adapter trained elsewhere; what is not given comes from it, then from the settings.

    Raises ToolkitError for a folder without an adapter; the hint says how to export what it holds.
    """
    from toolkit.export import foreign, foreign_template

    sources = _sources(settings, overrides)
    foreign.check_adapter(adapter)
    label, revision = foreign.base_of(adapter, base, sources)
    template = foreign_template.template_of(adapter, label, sources)
    return Order(adapter, label, revision, adapter.resolve().name, template, sources.config)


def one_too_many(model: str | None, base: str | None, adapter: str | None) -> ToolkitError:
    """Say that options exclude each other, with the command that was probably meant."""
    from toolkit.export import foreign

    if model is None:
        message = "--base names the base of an adapter, but there is no --adapter"
        return ToolkitError(message, hint=f"toolkit export --model {shlex.quote(base or '')}", exit_code=USAGE)
    other = "--base" if adapter is None else "--adapter"
    message = f"--model is a whole model, and {other} has no meaning next to it"
    if adapter is None and foreign.holds_adapter(Path(model).expanduser()):
        message, adapter = f"`{model}` holds an adapter, not a whole model", model
    hint = f"--model {shlex.quote(model)}"
    if adapter is not None:
        hint = f"--adapter {shlex.quote(adapter)} --base {shlex.quote(base or model)}"
    return ToolkitError(message, hint=f"toolkit export {hint}", exit_code=USAGE)


def of_model(model: str | None, settings: str, overrides: tuple[str, ...]) -> Order:
    """Order the export of a whole model, as it is; None takes the base that the settings state."""
    from toolkit.export import foreign, foreign_template
    from toolkit.model import base

    sources = _sources(settings, overrides)
    config = sources.config
    if model is None and "base" not in config.model.model_fields_set:
        raise ToolkitError("no model is named", hint="--model DIR|GGUF|ID", exit_code=USAGE)
    label = model or config.model.base
    foreign.check_model(label)
    path = Path(label).expanduser()
    name = (path.resolve().stem if path.is_file() else path.resolve().name) if path.exists() else label.split("/")[-1]
    as_it_is = config.export.model_copy(update={"merge_base": "as-trained"})
    config = config.model_copy(update={"export": as_it_is})
    template = foreign_template.template_of(None, label, replace(sources, config=config))
    return Order(None, label, base.revision_of(label, config.model), name.replace(":", "-"), template, config)


def _sources(settings: str, overrides: tuple[str, ...]) -> Any:
    from toolkit.export.foreign import Sources

    config = load_config(Path(settings), overrides) if Path(settings).is_file() else build({}, overrides)
    if config.export.imatrix:
        raise ToolkitError(
            "an importance matrix needs the training records, which a model trained elsewhere does not have",
            hint="leave it out with --set export.imatrix=false",
            exit_code=USAGE,
        )
    return Sources(settings, config, frozenset(override.partition("=")[0].strip() for override in overrides))


def order_of_run(config: Config, folder: RunFolder) -> Order:
    """Order the export of a run's own adapter into another form."""
    from toolkit.model import base

    if not (folder.adapter / "adapter_config.json").is_file():
        raise ToolkitError(f"there is no trained model in `{folder.path}`", hint="run `toolkit train` first")
    form = prompt_format(config.prompt)
    revision = base.revision_of(config.model.base, config.model)
    return Order(
        folder.adapter,
        config.model.base,
        revision,
        config.run.name,
        lambda found: (chat_template(form, bos=bool(load_tokenizer(found, form).bos_text)), True),
        config,
        form,
    )


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
        raise ToolkitError("--output is missing: where do the files go?", hint="--output DIR", exit_code=USAGE)
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
    from toolkit.export.adapter.effect import say_effect

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
