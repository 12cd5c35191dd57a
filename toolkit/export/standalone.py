"""Exports outside a run folder: an adapter trained elsewhere, or this run's in a form that other programs load."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.config_file import build, load_config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.output_settings import check_quantization
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import chat_template
from toolkit.prompt.tokenizer import load_tokenizer


@dataclass(frozen=True)
class Order:
    """What to export, of which adapter and base, under which name and with which chat template."""

    adapter: Path
    base: str
    name: str
    template: Callable[[Path], str]  # of the base's folder
    config: Config


def of_adapter(adapter: Path, base: str | None, settings: str, overrides: tuple[str, ...]) -> Order:
    """Order the export of an adapter trained elsewhere.

    What is not given comes from the settings file if there is one, else from the defaults; the base also from the
    adapter itself.
    """
    present = Path(settings).is_file()
    config = load_config(Path(settings), overrides) if present else build({}, overrides)
    if not (adapter / "adapter_config.json").is_file():
        raise ToolkitError(
            f"`{adapter}` is no adapter folder: it has no adapter_config.json",
            hint="name the folder that PEFT's save_pretrained wrote",
        )
    if config.export.imatrix:
        raise ToolkitError(
            "an importance matrix needs the training records, which an adapter from elsewhere does not bring",
            hint="leave it out with --set export.imatrix=false",
            exit_code=USAGE,
        )
    label = base or (config.model.base if present else _base_of(adapter))
    return Order(adapter, label, adapter.resolve().name, lambda found: _template(adapter, config, found), config)


def order_of_run(config: Config, folder: RunFolder) -> Order:
    """Order the export of a run's own adapter into another form."""
    if not (folder.adapter / "adapter_config.json").is_file():
        raise ToolkitError(f"there is no trained model in `{folder.path}`", hint="run `toolkit train` first")
    form = prompt_format(config.prompt)
    return Order(folder.adapter, config.model.base, config.run.name, lambda found: _preset(form, found), config)


def carry_out(
    order: Order, form: str, quantizations: tuple[str, ...], output: str | None, *, dry_run: bool, force: bool
) -> dict[str, Any]:
    """Write `OUTPUT/NAME-QUANT.gguf`, `OUTPUT/NAME-lora.gguf` or the folder `OUTPUT/NAME-merged`.

    `form` is `gguf`, `safetensors` or `lora-gguf`. Returns files with their figures. Raises ToolkitError rather than
    overwrite, unless `force`.
    """
    from toolkit import export as room
    from toolkit.export.vocab import pretokenizer_parity
    from toolkit.model import base, merge_base

    config = order.config
    if output is None:
        raise ToolkitError("--output is missing: where do the files go?", hint="--output DIR", exit_code=USAGE)
    if quantizations and form != "gguf":
        raise ToolkitError(f"--quant has no meaning for --format {form}", hint="leave it out", exit_code=USAGE)
    try:
        names = [check_quantization(name) for name in quantizations] or config.export.quantizations
    except ValueError as exc:
        raise ToolkitError(str(exc), exit_code=USAGE) from None
    ends = {"safetensors": {"safetensors": "merged"}, "lora-gguf": {"lora": "lora.gguf"}}
    ending = ends.get(form, {quantization: f"{quantization}.gguf" for quantization in names})
    targets = {key: Path(output) / f"{order.name}-{end}" for key, end in ending.items()}
    present = [str(path) for path in targets.values() if path.exists()]
    if present and not force:
        raise ToolkitError(f"already there: {', '.join(present)}", hint="choose another --output, or use --force")
    revision = base.revision_of(order.base, config.model)
    model = config.model.model_copy(update={"base": order.base, "revision": revision})
    folder = merge_base.resolve(model, config.export).folder
    if dry_run:
        return _preview(order, form, targets, folder)
    if form == "gguf":
        pretokenizer_parity.warn_if_split_differs(folder, None)
        overrides = config.export.overrides
        outcome = room.export(folder, order.adapter, targets, order.template(folder), order.name, overrides=overrides)
        figures = {key: outcome.figures[key] for key in targets}
    elif form == "safetensors":
        from toolkit.export.merged_model import export_merged

        outcome = export_merged(folder, order.adapter, targets["safetensors"], order.template(folder))
        figures = {"safetensors": outcome.figures}
    else:
        from toolkit.export.lora_gguf import export_lora

        outcome = export_lora(folder, order.adapter, targets["lora"], order.name)
        figures = {"lora": outcome.figures}
    files = {key: {"path": str(targets[key]), **figures[key]} for key in targets}
    return {"files": files, "seconds": outcome.figures["seconds"]}


def _preview(order: Order, form: str, targets: dict[str, Path], base: Path) -> dict[str, Any]:
    """Say what would be written; for GGUF files with every tensor's type."""
    from toolkit.export import plan, preview

    overrides = order.config.export.overrides
    planned = plan(base, order.adapter, list(targets) if form == "gguf" else ["F16"], overrides=overrides)
    if form == "gguf":
        files = {key: {"path": str(path), "bytes": planned.bytes[key]} for key, path in targets.items()}
        return {"files": files, "dry_run": True, "plan": preview.describe_export(planned)}
    if form == "safetensors":
        from toolkit.export.merged_model import size

        count = sum(size(tensor) for tensor in planned.tensors if tensor.stored)
    else:
        from toolkit.export.lora_gguf import size_of

        count = size_of(base, order.adapter, planned)
    return {"files": {key: {"path": str(path), "bytes": count} for key, path in targets.items()}, "dry_run": True}


def _base_of(adapter: Path) -> str:
    try:
        named = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        named = None
    if not isinstance(named, str) or not named:
        raise ToolkitError(
            f"`{adapter}` does not name its base model", hint="name it with --base DIR|GGUF|ID", exit_code=USAGE
        )
    return named


def _preset(form: PromptFormat, base: Path) -> str:
    return chat_template(form, bos=load_tokenizer(base).bos is not None)


def _template(adapter: Path, config: Config, base: Path) -> str:
    """Take the chat template that the adapter was saved with; else the one of our settings."""
    path = adapter / "chat_template.jinja"
    if path.is_file():
        console.info(f"chat template: the adapter's own ({path})")
        return path.read_text(encoding="utf-8")
    try:
        kept = json.loads((adapter / "tokenizer_config.json").read_text(encoding="utf-8")).get("chat_template")
    except (OSError, json.JSONDecodeError, UnicodeDecodeError, AttributeError):
        kept = None
    if isinstance(kept, str):
        console.info("chat template: the adapter's own (tokenizer_config.json)")
        return kept
    console.info(f"chat template: prompt.preset = {config.prompt.preset}, since the adapter brings none")
    return _preset(prompt_format(config.prompt), base)
