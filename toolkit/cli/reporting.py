"""The verb `report`: a run's page and model card, or two runs side by side."""

from pathlib import Path
from typing import TYPE_CHECKING

from toolkit.cli.performing import load_run
from toolkit.core import console
from toolkit.core.errors import USAGE, ToolkitError

if TYPE_CHECKING:
    from toolkit.pipeline.run import Run


def write(path: str, overrides: tuple[str, ...], force: bool) -> Path:
    """Write the page and the model card again; return the page."""
    written = load_run(path, overrides).report(force=force)
    card = str(written.model_card) if written.model_card else None
    console.result({"page": str(written.page), "model_card": card}, str(written))
    return written.page


def compare_runs(path: str, overrides: tuple[str, ...], names: tuple[str, str]) -> Path:
    """Write the page of two runs beside each other, and return it."""
    one, other = (_run_named(name, path, overrides) for name in names)
    compared = one.compare(other)
    console.result({"page": str(compared.page), **compared.figures}, str(compared))
    return compared.page


def _run_named(name: str, path: str, overrides: tuple[str, ...]) -> "Run":
    """Return a run by its folder, or by its name next to the run of the settings file."""
    if Path(name).is_dir():
        return load_run(name, overrides)
    place = Path(load_run(path, overrides).config.run.folder if Path(path).exists() else "exports")
    if not (place / name).is_dir():
        raise ToolkitError(
            f"there is no run `{name}` in `{place}`", hint="name a run there, or the folder of one", exit_code=USAGE
        )
    return load_run(str(place / name), overrides)


def open_page(page: Path) -> None:
    """Open a page in a browser, or say that there is none."""
    import webbrowser

    if not webbrowser.open(page.resolve().as_uri()):
        console.warn(f"no browser was found; open `{page}` yourself")
