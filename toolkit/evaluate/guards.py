"""Guards around lm-eval: its output, its seeds, its data, and programs that it would download."""

import contextlib
import importlib
import importlib.util
import io
import logging
import os
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from toolkit.core.errors import USAGE, ToolkitError
from toolkit.evaluate.task_data import task_data

SEEDS = {"random": 0, "numpy": 1234, "fewshot": 1234}  # lm-eval's own


@contextlib.contextmanager
def own_data(folder: Path | None) -> Iterator[None]:
    """Let tasks that are described by a YAML file read their data by `task_data`."""
    from lm_eval.api.task import ConfigurableTask

    usual = ConfigurableTask.download

    def download(task: Any, dataset_kwargs: dict[str, Any] | None = None, **_: Any) -> None:
        if callable(task.config.custom_dataset):  # lm-eval's own code makes them
            usual(task, dataset_kwargs)
        else:
            task.dataset = task_data(task, folder)

    ConfigurableTask.download = download
    try:
        yield
    finally:
        ConfigurableTask.download = usual


@contextlib.contextmanager
def no_programs() -> Iterator[None]:
    """Refuse metrics that the library `evaluate`, which lm-eval brings, would fetch from the hub as programs."""

    def refuse(path: str, *_: Any, **__: Any) -> Any:
        raise ToolkitError(
            f"a task's metric `{path}` is a program on the hub, and the toolkit fetches and runs none",
            hint="leave that task out of `evaluate.tasks`",
            exit_code=USAGE,
        )

    spec = importlib.util.find_spec("evaluate")
    if spec is None or spec.submodule_search_locations is None:  # a user's own evaluate.py hides the library
        yield
        return
    library: Any = importlib.import_module("evaluate")
    usual, library.load = library.load, refuse
    try:
        yield
    finally:
        library.load = usual


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep lines and bars of lm-eval, `datasets` and tasks' own code off the streams, and no use is told the hub.

    The environment is afterwards what it was: lm-eval changes how this process downloads from the hub.
    """
    environment = dict(os.environ)
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    logger = logging.getLogger("lm_eval")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        try:
            yield
        finally:
            logger.setLevel(level)
            for name in {*os.environ, *environment}:
                if os.environ.get(name) != environment.get(name):
                    _set(name, environment.get(name))


def _set(name: str, value: str | None) -> None:
    if value is None:
        del os.environ[name]
    else:
        os.environ[name] = value


@contextlib.contextmanager
def seeded() -> Iterator[None]:
    """Give tasks that draw their items lm-eval's own seeds; afterwards the generators go on as before."""
    states: list[tuple[Callable[[Any], None], Any]] = [
        (random.setstate, random.getstate()),
        (np.random.set_state, np.random.get_state()),
    ]
    random.seed(SEEDS["random"])
    np.random.seed(SEEDS["numpy"])
    try:
        yield
    finally:
        for restore, state in states:
            restore(state)
