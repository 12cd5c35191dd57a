"""The verb `export` outside a run: an adapter from elsewhere, a complete model, or another format than GGUF."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.performing import load_run
from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.pipeline.freshness import check_stages_before

if TYPE_CHECKING:
    from toolkit.export.ordering import Order


@dataclass(frozen=True)
class Options:
    """The verb's own options, as they were given."""

    adapter: str | None
    base: str | None
    model: str | None
    quantizations: tuple[str, ...]
    output: str | None
    form: str

    @property
    def whole(self) -> bool:
        """Tell whether `--adapter none` says that the base is exported as it is."""
        return self.adapter is not None and self.adapter.lower() == "none"

    @property
    def of_run(self) -> bool:
        """Tell whether this is the run's own stage; raises ToolkitError for options that it does not have."""
        from toolkit.export import ordering

        if self.model is not None and (self.base is not None or (self.adapter is not None and not self.whole)):
            raise ordering.one_too_many(self.model, self.base, None if self.whole else self.adapter)
        if self.model is not None or self.adapter is not None:
            return False
        if self.base is not None:
            raise ordering.one_too_many(None, self.base, None)
        others = [("--quant", self.quantizations), ("--output", self.output if self.form == "gguf" else None)]
        given = [name for name, value in others if value]
        if given:
            raise ToolkitError(
                f"{given[0]} needs --adapter or --model",
                hint="to change this run's export, use --set, for example --set export.quantizations=Q8_0,F16",
                exit_code=USAGE,
            )
        return self.form == "gguf"


def carry_out(given: Options, path: str, overrides: tuple[str, ...], *, dry_run: bool, force: bool) -> None:
    """Export what the options order, print the files, and name the next step."""
    from toolkit.cli import summary
    from toolkit.export import standalone

    order = _order(given, path, overrides, force)
    figures = standalone.carry_out(order, given.form, given.quantizations, given.output, dry_run=dry_run, force=force)
    console.result(*summary.of_export(figures))
    if "next" in figures:
        console.next_step(figures["next"])


def _order(given: Options, path: str, overrides: tuple[str, ...], force: bool) -> "Order":
    from toolkit.export import ordering

    if given.model is not None or given.whole:
        return ordering.of_model(given.model or given.base, path, overrides)
    if given.adapter is not None:
        return ordering.of_adapter(Path(given.adapter), given.base, path, overrides)
    run = load_run(path, overrides)
    if not force:
        check_stages_before("export", run.config, run.folder)
    return ordering.order_of_run(run.config, run.folder)
