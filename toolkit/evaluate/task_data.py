"""The data of lm-eval's tasks: from a folder, or from the hub once. Nothing in them is ever run as a program.

In the folder (`evaluate.task_folder`) each task has a folder of its own, named after the task or after its data set on
the hub: `medqa_4options`, or `GBaker/MedQA-USMLE-4-options-hf`. It holds one of these:

- a file for each split: `test.jsonl`, `validation.parquet` (also .json and .csv);
- the data set as `hf download OWNER/NAME --repo-type dataset --local-dir DIR` fetches it;
- what `datasets` wrote by `save_to_disk`.

Where a data set has several configurations, one of these may lie in a folder named after the task's. Only the split
that is asked must be there: questions of others are read where a task shows examples before each question.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from toolkit.core.errors import MISSING, USAGE, ToolkitError
from toolkit.core.network import forbidden_by, is_offline


def task_data(task: Any, folder: Path | None) -> Any:
    """Return the splits of an lm-eval task, a dict by name; `folder` is `evaluate.task_folder`, else the hub is asked.

    Raises ToolkitError where there are none, with what to fetch, or where they come as a program.
    """
    config = task.config
    found = _from_hub(config) if folder is None else _from_folder(config, folder)
    asked = config.test_split or config.validation_split
    if asked not in found:
        raise ToolkitError(
            f"the data of task `{config.task}` have no split `{asked}`; they have {', '.join(map(str, found))}",
            hint=f"name a file of them `{asked}.jsonl` or `{asked}.parquet`",
            exit_code=USAGE,
        )
    shots = config.num_fewshot or 0
    shown = getattr(config.fewshot_config, "split", None)
    for split in filter(None, (config.training_split, config.validation_split, config.fewshot_split, shown)):
        if split == asked:
            continue
        if not shots:  # large, and never looked at
            found = {**found, split: found[asked].select([])}
        elif split not in found and split in (shown, config.fewshot_split or config.training_split):
            raise ToolkitError(
                f"task `{config.task}` shows {shots} examples of the split `{split}`, which its data do not have",
                hint=f"add that split, `{split}.jsonl` or `{split}.parquet`",
                exit_code=USAGE,
            )
    return found


def check_task_folder(folder: Path) -> None:
    """Raise ToolkitError if `evaluate.task_folder` is no folder."""
    if not folder.is_dir():
        raise ToolkitError(
            f"`evaluate.task_folder` names `{folder}`, which is no folder",
            hint="correct it, or leave it out: the data then come from the hub",
            exit_code=USAGE,
        )


def _from_folder(config: Any, folder: Path) -> dict[str, Any]:
    """Read a task's data from below `evaluate.task_folder`."""
    check_task_folder(folder)
    name, path = config.dataset_name, str(config.dataset_path)
    places = [folder / part for part in (config.task, path, path.rpartition("/")[2]) if _inside(part)]
    place = next((place for place in places if place.is_dir()), None)
    if place is None:
        raise ToolkitError(
            f"`{folder}` has no data for task `{config.task}`: neither a folder `{config.task}` nor `{path}`",
            hint=_fetch(config, folder),
            exit_code=MISSING,
        )
    if name and (place / name).is_dir() and not (place / "README.md").is_file():
        place = place / name
    try:
        return _read(place, name, config)
    except ToolkitError:
        raise
    except Exception as exc:  # each builder of `datasets` has errors of its own
        _refuse_program(exc, config, folder)
        raise ToolkitError(
            f"the data of task `{config.task}` in `{place}` cannot be read: {_reason(exc)}",
            hint=f"fetch or write them again; {_fetch(config, folder)}",
            exit_code=USAGE,
        ) from None


def _read(place: Path, name: str | None, config: Any) -> dict[str, Any]:
    import datasets

    if (place / "dataset_dict.json").is_file():
        return dict(datasets.load_from_disk(str(place)))
    if (place / "state.json").is_file():
        return {config.test_split or config.validation_split: datasets.load_from_disk(str(place))}
    try:
        return dict(datasets.load_dataset(str(place), name))
    except ValueError as exc:
        if name is None or "BuilderConfig" not in str(exc):
            raise
        if place.name != config.task and any(path.is_dir() for path in place.iterdir()):
            raise ToolkitError(  # else all configurations would be read as one
                f"the data in `{place}` have no configuration `{name}`, which task `{config.task}` asks",
                hint=f"put a file for each split into `{place / name}`, as `test.jsonl`, or fetch the data set again",
                exit_code=USAGE,
            ) from None
        return dict(datasets.load_dataset(str(place)))


def _from_hub(config: Any) -> dict[str, Any]:
    """Read a task's data from the hub's cache, or from the hub."""
    import datasets

    options = {key: value for key, value in (config.dataset_kwargs or {}).items() if key != "trust_remote_code"}
    try:
        with _as_offline_as_asked():
            return dict(datasets.load_dataset(config.dataset_path, config.dataset_name, **options))
    except Exception as exc:  # those of httpx, of the hub, of `datasets` and of its builders
        _refuse_program(exc, config, None)
        said = _reason(exc)
        if "gated" in said:
            happened, hint = "are gated", "ask for access on their page, run `hf auth login`, and try again"
        elif type(exc).__name__ == "DatasetNotFoundError" and "doesn't exist" in said:
            happened, hint = "are not on the hub", _fetch(config, None)
        else:
            forbidden = f", and {forbidden_by()} forbids the network" if is_offline() else ""
            happened = f"are not on this machine{forbidden}"
            hint = _fetch(config, None)
        raise ToolkitError(
            f"the data of task `{config.task}` (`{config.dataset_path}`) {happened}: {said}",
            hint=hint,
            exit_code=MISSING,
        ) from None


@contextmanager
def _as_offline_as_asked() -> Iterator[None]:
    """Let `datasets` and the hub's library see what forbids the network, which they read when they are imported."""
    import datasets
    from huggingface_hub import constants

    former = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    if is_offline():
        datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = former


def _refuse_program(exc: Exception, config: Any, folder: Path | None) -> None:
    """Raise ToolkitError if an error says that data come as a program."""
    if "scripts are no longer supported" in str(exc) or "trust_remote_code" in str(exc):
        place = f"`{folder or 'FOLDER'}/{config.task}/{config.test_split or config.validation_split}.jsonl`"
        set_it = "" if folder else ' and set `evaluate.task_folder = "FOLDER"`'
        raise ToolkitError(
            f"the data of task `{config.task}` come as a program ({config.dataset_path}), and the toolkit runs none",
            hint=f"write its questions into {place}, one JSON object a line{set_it}, or leave the task out",
            exit_code=USAGE,
        ) from None


def _fetch(config: Any, folder: Path | None) -> str:
    """Say how to bring a task's data to a machine without a network."""
    path = str(config.dataset_path)
    if "/" not in path:
        return f"write them into `{folder or 'FOLDER'}/{config.task}`, a file for each split, as `test.jsonl`"
    command = f"`hf download {path} --repo-type dataset --local-dir {folder or 'FOLDER'}/{path}`"
    return f"where there is a network, run {command}" + (
        "" if folder else ', and set `evaluate.task_folder = "FOLDER"`'
    )


def _inside(part: str | None) -> bool:
    """Tell whether a name stays below the folder that it is looked for in."""
    return bool(part) and not Path(str(part)).is_absolute() and ".." not in Path(str(part)).parts


def _reason(exc: Exception) -> str:
    """Return the first line of the innermost cause: `datasets` wraps a reader's own words."""
    while isinstance(exc.__cause__, Exception):
        exc = exc.__cause__
    return " ".join((str(exc).splitlines() or [""])[0].split())[:300] or type(exc).__name__
