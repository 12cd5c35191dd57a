"""A data set of the Hugging Face hub, or a folder in its form, read by the library datasets. No code of it is run."""

import ast
import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import IO, Any

from toolkit.core import console
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.files import scratch_folder, writing
from toolkit.core.network import forbidden_by, hub_proxy
from toolkit.core.spool import temporary_file
from toolkit.formats.names import first_names

PREFIX = "hf:"
PLACE = Path("data/raw")  # of the one file that a download becomes; relative to the working directory
_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
_SHOWN = 6  # names in one line


def parse_name(name: str) -> tuple[str, str]:
    """Divide `hf:OWNER/NAME[:SPLIT]` into data set and split; raises ToolkitError where it is neither id nor folder."""
    text = name.removeprefix(PREFIX)
    found, _, split = text.partition(":")
    if not _ID.fullmatch(found) and not is_local(found):
        raise ToolkitError(
            f"`{name}` names no data set: it is neither OWNER/NAME nor a folder",
            hint="write `hf:OWNER/NAME`, or `hf:OWNER/NAME:SPLIT` for one of its splits",
        )
    return found, split


def is_local(found: str) -> bool:
    """Say whether a data set is a folder on this machine."""
    return bool(found) and Path(found).expanduser().is_dir()


def local_files(folder: Path) -> list[Path]:
    """Return the files of a data set that is a folder, by name, without hidden ones."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in paths if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def downloaded_place(found: str, split: str) -> Path:
    """Return where a data set's rows are, or will be, as one parquet file."""
    return PLACE / ("--".join([*found.split("/"), *filter(None, [split])]) + ".parquet")


def fetch_data_set(name: str, *, offline: bool) -> None:
    """Download a data set once, unless it is a folder; raises ToolkitError (exit 3) where that is not possible."""
    found, split = parse_name(name)
    place = downloaded_place(found, split)
    if is_local(found) or place.exists():
        return
    if offline:
        raise ToolkitError(
            f"`{place}` is not there, and {forbidden_by()} forbids downloading `{name}`",
            hint="run the same command once with the network, or set `data.source` to a file of your own",
            exit_code=MISSING,
        )
    with data_set_rows(found, split) as rows, writing(place) as file:
        shutil.copyfileobj(rows, file)
    console.done(f"the data set {name} is in {place}")


def data_set_rows(found: str, split: str) -> IO[bytes]:
    """Return a data set's rows as a nameless parquet file: the split that is named, else `train`, else the only one.

    Labels become their names. Raises ToolkitError where it is absent or gated, wants code, has no such split, or has
    several configurations.
    """
    import datasets
    import pyarrow.parquet as pq

    datasets.disable_progress_bars()
    logging.getLogger("huggingface_hub").setLevel(logging.ERROR)  # it warns of pages without a header
    shown = f"{PREFIX}{found}"
    # The library's own copy, which would stay in the user's cache, goes: the rows may be patients'.
    with scratch_folder("hub") as cache:
        try:
            splits = datasets.load_dataset(
                str(Path(found).expanduser()) if is_local(found) else found, cache_dir=str(cache)
            )
        except Exception as exc:  # of the hub, the network, and each reader of a format
            raise hub_refusal(exc, found) from None
        chosen = split or ("train" if "train" in splits else next(iter(splits)) if len(splits) == 1 else "")
        if chosen not in splits:
            what = f"has no split `{split}`" if split else "has several splits"
            raise ToolkitError(
                f"`{shown}` {what}: it has {first_names(list(splits), _SHOWN)}",
                hint=f"name one: `--set data.source={shown}:{next(iter(splits))}`",
            )
        if others := [name for name in splits if name != chosen]:
            console.info(f"{shown}: the split `{chosen}` is read, not {first_names(others, _SHOWN)}")
        written = temporary_file()
        pq.write_table(_named_labels(splits[chosen]), written)
        del splits
    written.seek(0)
    return written


def _named_labels(rows: Any) -> Any:
    """Return a split's Arrow table with the names of labels, not their numbers."""
    import pyarrow as pa
    import pyarrow.compute as pc

    table = rows.data.table
    for at, (name, feature) in enumerate(rows.features.items()):
        if type(feature).__name__ == "ClassLabel":
            numbers = pc.if_else(pc.less(table[name], 0), None, table[name])  # -1 is the hub's "not labelled"
            table = table.set_column(at, name, pc.take(pa.array(feature.names), numbers))
    return table


def hub_refusal(exc: Exception, found: str) -> ToolkitError:
    """Say why a data set cannot be read, and what to do."""
    shown, said = f"{PREFIX}{found}", " ".join(str(exc).split())
    if "corresponds to no data" in said:
        return ToolkitError(f"`{shown}` has no rows", hint="set `data.source` to questions and answers")
    if "scripts are no longer supported" in said:
        return ToolkitError(
            f"`{shown}` wants code of its own to be run ({said.rpartition('found ')[2]}), which is never done",
            hint="its page on the hub may have the same rows as parquet (branch refs/convert/parquet): download those "
            "files and set `data.source` to them",
        )
    if "Config name is missing" in said:
        names = re.search(r"\[.*?\]", said)
        configs = [str(one) for one in ast.literal_eval(names[0])] if names else []
        first = configs[0] if configs else "NAME"
        target = f"{first}.parquet"
        code = (
            f'd.load_dataset({json.dumps(found)}, {json.dumps(first)}, split="train").to_parquet({json.dumps(target)})'
        )
        return ToolkitError(
            f"`{shown}` has several configurations: {first_names(configs, _SHOWN)}",
            hint=f"write one to a file: `python -c {shlex.quote(f'import datasets as d; {code}')}`, then "
            f"`--set {shlex.quote(f'data.source={target}')}`",
        )
    if type(exc).__name__ == "GatedRepoError" or "is a gated dataset" in said:
        return ToolkitError(
            f"`{shown}` is gated: its owner decides who may read it",
            hint=f"ask for access on https://huggingface.co/datasets/{found}, then `hf auth login`",
            exit_code=MISSING,
        )
    if type(exc).__name__ in ("DatasetNotFoundError", "RepositoryNotFoundError"):
        return ToolkitError(
            f"the hub has no data set `{found}`, or it is private",
            hint="check the name; for a private one, `hf auth login` first",
            exit_code=MISSING,
        )
    cause, proxy = exc.__cause__ or exc, "" if is_local(found) else hub_proxy()
    through = f" with the proxy of {proxy}" if proxy else ""
    return ToolkitError(
        f"`{shown}` cannot be read: {type(cause).__name__}: {' '.join(str(cause).split())[:300]}",
        hint=f"check the name and the network{through}, or download its files by hand and set `data.source` to them",
        exit_code=MISSING,
    )
