"""What to export outside a run: an adapter from elsewhere, a complete model, or a run's own in another format."""

import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from toolkit.core.config import Config
from toolkit.core.config_file import build, load_config
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.run_folder import RunFolder
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.templates import chat_template
from toolkit.prompt.tokenizer import load_tokenizer


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
