"""An adapter from elsewhere: where it is, and its base. The nearest source wins, and is named."""

import contextlib
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from toolkit.core import console
from toolkit.core.config import Config
from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.parsing import read_json
from toolkit.export.adapter.config import CONFIG
from toolkit.export.adapter.mlx import check_mlx, is_mlx
from toolkit.formats.names import first_names
from toolkit.model import base as bases


@dataclass(frozen=True)
class Sources:
    """The settings, their file, and those set on the command line (`set_there`)."""

    settings: str
    config: Config
    set_there: frozenset[str]


def check_adapter(folder: Path) -> None:
    """Raise ToolkitError unless a folder holds an adapter; the hint names one in a subfolder, or another way."""
    if holds_adapter(folder):
        check_mlx(folder)
        return
    if not folder.exists():
        shape = bases.HUB_ID.fullmatch(str(folder))
        fetch = f"adapters are read from folders: hf download {folder} --local-dir DIR, then --adapter DIR"
        raise ToolkitError(
            f"`{folder}` is not an adapter folder: it does not exist",
            hint=fetch if shape else "name the folder that PEFT's save_pretrained wrote",
        )
    if folder.is_file():
        beside = (folder.parent / CONFIG).is_file()
        hint = _option("--adapter", folder.parent) if beside else f"a whole model: {_export('--model', folder)}"
        raise ToolkitError(f"`{folder}` is a file, not an adapter folder", hint=hint, exit_code=USAGE)
    start = f"`{folder}` is not an adapter folder: it has no {CONFIG}"
    inside = _inside(folder, CONFIG)
    if inside:
        raise ToolkitError(
            f"{start}, but these folders in it do: {_listed(folder, inside)}", hint=_which(folder, inside, "--adapter")
        )
    if (folder / "config.json").is_file() and any(folder.glob("*.safetensors")):
        raise ToolkitError(f"{start}; it holds a whole model", hint=f"export it as it is: {_export('--model', folder)}")
    inside = _inside(folder, "config.json")
    if inside:
        raise ToolkitError(
            f"{start}; it holds whole models in {_listed(folder, inside)}",
            hint=_which(folder, inside, "toolkit export --model"),
        )
    raise ToolkitError(start, hint="name the folder that PEFT's save_pretrained wrote")


def holds_adapter(folder: Path) -> bool:
    """Tell whether a folder holds an adapter of PEFT or MLX, or what is left of one."""
    return (folder / CONFIG).is_file() or is_mlx(folder)


def check_model(label: str) -> None:
    """Raise ToolkitError for a folder that is not a model, but holds an adapter, or models in its subfolders."""
    folder = Path(label).expanduser()
    if not folder.is_dir() or (folder / "config.json").is_file():
        return
    if holds_adapter(folder):
        raise ToolkitError(f"`{folder}` holds an adapter, not a whole model", hint=_export("--adapter", folder))
    for name, option in (("config.json", "--model"), (CONFIG, "--adapter")):
        inside = _inside(folder, name)
        if inside:
            hint = _which(folder, inside, option)
            raise ToolkitError(
                f"`{folder}` is not a model folder, but it contains {_listed(folder, inside)}", hint=hint
            )


def _inside(folder: Path, name: str) -> list[Path]:
    """List the folders up to two levels down that hold a file of this name, checkpoints by their number."""
    found = {path.parent for depth in ("*", "*/*") for path in folder.glob(f"{depth}/{name}")}

    def order(path: Path) -> tuple[int, str]:
        number = re.search(r"(\d{1,15})$", path.name)
        return (int(number[1]) if number else -1, str(path))

    return sorted(found, key=order)


def _listed(folder: Path, inside: list[Path]) -> str:
    return first_names([str(path.relative_to(folder)) for path in inside], 5)


def _option(option: str, value: Path | str) -> str:
    return f"{option} {shlex.quote(str(value))}"


def _export(option: str, value: Path | str) -> str:
    return f"toolkit export {_option(option, value)}"


def _which(folder: Path, inside: list[Path], option: str) -> str:
    last = inside[-1]
    hint = _option(option, last) + (" is the last one" if len(inside) > 1 else "")
    for state in (folder / "trainer_state.json", last / "trainer_state.json"):
        with contextlib.suppress(ToolkitError):
            best = read_json(state, "").get("best_model_checkpoint")
            found = [path for path in inside if isinstance(best, str) and path.name == Path(best).name]
            if found and found[0] != last:
                return f"{hint}, {_option(option, found[0])} the best by its held-out loss"
    return hint


def base_of(adapter: Path, given: str | None, sources: Sources) -> tuple[str, str]:
    """Return an adapter's base and its revision: the one `given`, else the adapter's own, else that of the settings.

    Names the source, and warns of sources that differ. Raises ToolkitError if none names a base.
    """
    settings = sources.config.model
    named = read_json(adapter / CONFIG, "name the folder that PEFT's save_pretrained wrote")
    own = named.get("base_model_name_or_path") or named.get("model")  # MLX's name for it
    stated = settings.base if "base" in settings.model_fields_set else None
    where = "--set model.base" if "model.base" in sources.set_there else f"`{sources.settings}`"
    ways = [("--base", given), ("the adapter's own", own if isinstance(own, str) else None), (where, stated)]
    known = [(way, label) for way, label in ways if label]
    if not known:
        raise ToolkitError(
            f"`{adapter}` does not name its base model", hint="name it with --base DIR|GGUF|ID", exit_code=USAGE
        )
    (way, label), *others = known
    console.info(f"base: {label} ({way})")
    for other, differs in others:
        if not _same(label, differs):
            console.warn(f"{other} names another base, `{differs}`, which is not used; --base selects it")
    elsewhere = bases.HUB_ID.fullmatch(label) is not None or label.startswith("pypi:")
    if way == "the adapter's own" and not elsewhere and not Path(label).expanduser().exists():
        raise ToolkitError(
            f"the adapter in `{adapter}` names the base `{label}`, which is not on this machine",
            hint=f"name it with {_option('--base', stated) if stated else '--base DIR|GGUF|ID'}",
            exit_code=MISSING,
        )
    revision = bases.revision_of(label, settings)
    if way == "the adapter's own" and isinstance(named.get("revision"), str):
        revision = revision or named["revision"]
    return label, revision


def _same(one: str, other: str) -> bool:
    """Tell whether two labels mean one base: one folder, or one name, 4 bits or not."""

    def place(label: str) -> Path | None:
        path = Path(label).expanduser()
        with contextlib.suppress(ToolkitError, OSError):
            return path.resolve() if path.exists() else bases.present(label)
        return None

    def name(label: str) -> str:
        short = label.rstrip("/").rpartition("/")[2].lower()
        return next((short.removesuffix(end) for end in bases.FOUR_BIT if short.endswith(end)), short)

    if one == other or (name(one) == name(other) and not (Path(one).exists() and Path(other).exists())):
        return True
    folders = place(one), place(other)
    return folders[0] is not None and folders[0] == folders[1]


@contextlib.contextmanager
def in_options() -> Iterator[None]:
    """Change hints about a run's settings into hints about the options of an export outside a run."""
    try:
        yield
    except ToolkitError as exc:
        hint = exc.hint or ""
        for setting, option in (
            ("set `model.base` to", "give --base"),
            ("or set `model.base` to", "or give --base"),
            ("`--set model.base_16bit=DIR|ID`", "--base DIR|ID"),
            ("`--set run.folder=DIR`", "--output DIR"),
            ("copy the base again", "copy the base again, or name it with --base"),
        ):
            hint = hint.replace(setting, option)
        raise ToolkitError(exc.message, hint=hint, exit_code=exc.exit_code, details=exc.details) from exc
