"""What all tests share: no deadlines, a clean console, and a way to call the command line as a user does."""

import atexit
import functools
import gc
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from tests.support import cache, outside, processes, properties  # noqa: F401  (it registers the profiles)
from tests.support.ollama_server import OllamaServer, find_ollama, ollama_server
from toolkit.core import console

WORKER = "PYTEST_XDIST_WORKER" in os.environ  # one of several processes that run tests

# Each has cores of its own: threads of torch and llama.cpp on shared cores wait for each other busily, and everything
# takes almost twice as long.
if WORKER and hasattr(os, "sched_setaffinity"):
    number, count = (os.environ[f"PYTEST_XDIST_WORKER{name}"] for name in ("", "_COUNT"))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[int(number.removeprefix("gw")) % len(cores) :: int(count)])

# The large libraries make a million objects that stay: looking through them again and again takes a fifth of the time
# of their import, and taking them apart in the end takes two seconds.
gc.set_threshold(50_000, 20, 100)
if WORKER:
    atexit.register(os._exit, 0)  # the first to register is the last to be called

# What runs in the background ignores these, and what it starts does too: tests start processes as a terminal does.
for signal_number, usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(signal_number) == signal.SIG_IGN:
        signal.signal(signal_number, usual)

settings.load_profile("full")  # `make fast` names the other


# Modules that take minutes each begin, so that in the end no worker waits for another's.
LONGEST = {"test_pages.py", "test_end_to_end.py", "test_gemma.py"}
HEAVY = ("run", "train", "validate")  # the verbs that import torch or transformers


@dataclass(frozen=True)
class Called:
    """How a call of the command line ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """The object on the last line of stdout."""
        value: dict[str, Any] = json.loads(self.out.splitlines()[-1])
        return value


def pytest_configure(config: pytest.Config) -> None:
    """Make a folder for what tests make alike, before the workers start: they inherit its name."""
    if made := cache.begin():
        config.add_cleanup(lambda: shutil.rmtree(made, ignore_errors=True))


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave a module alone whose tests are all left out by its mark: what such modules import takes seconds.

    A module that the call names is read, so that it can say what it left out.
    """
    terms = str(config.option.markexpr).split(" and ")
    out = [term.removeprefix("not ") for term in terms if term.startswith("not ") and " or " not in term]
    named = {Path(argument.partition("::")[0]).resolve() for argument in config.args}
    if not out or collection_path.suffix != ".py" or collection_path in named:
        return None
    marks = re.findall(r"^pytestmark = .*", collection_path.read_text(encoding="utf-8"), re.MULTILINE)
    return True if re.search(rf"mark\.({'|'.join(out)})\b", " ".join(marks)) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Write into a JUnit report what a test belongs to: tests/generations.py makes a row of it."""
    gc.freeze()  # what the tests' modules have imported stays
    items.sort(key=lambda item: item.path.name not in LONGEST)
    for item in items:
        words = (getattr(item, "module", None).__doc__ or item.nodeid).strip()
        item.user_properties.append(("row", words.partition("\n")[0].rstrip(".")))


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(
    fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
) -> Generator[None, Any, Any]:
    """Remove what a module's fixture made when the module is through: all of it together takes 17 GB.

    After a failure it stays, as pytest keeps the folder of a test that failed.
    """
    if fixturedef.scope != "module" or "tmp_path_factory" not in fixturedef.argnames:
        return (yield)
    place = request.getfixturevalue("tmp_path_factory").getbasetemp()
    before, made = set(place.iterdir()), set[Path]()

    def remove() -> None:
        for folder in made if not request.session.testsfailed else ():
            shutil.rmtree(folder, ignore_errors=True)

    fixturedef.addfinalizer(remove)  # the first to be added is the last to be called: what runs there has ended
    value = yield
    made |= set(place.iterdir()) - before
    return value


@pytest.fixture(autouse=True)
def _clean_console() -> Iterator[None]:
    """No test sees another's console, nor the environment that `--offline` sets when it is called in this process."""
    console.configure()
    names = ("HF_HUB_OFFLINE", "TOOLKIT_OFFLINE")
    unset = [name for name in names if name not in os.environ]
    yield
    for name in unset:
        os.environ.pop(name, None)


def call_toolkit(*arguments: str, cwd: Path, timeout: float = 600, **environment: str) -> Called:
    """Call `toolkit …` in a process of its own; unless OLLAMA_HOST is given, there is no Ollama server."""
    heavy = arguments[0] in HEAVY and "--dry-run" not in arguments
    large = (*processes.LARGE, *processes.LARGE_TOO) if heavy else ()
    env = {"OLLAMA_HOST": "127.0.0.1:9", **environment}
    done = processes.run("-m", "toolkit", *arguments, cwd=cwd, env=env, timeout=timeout, imports=large)
    return Called(done.returncode, done.stdout, done.stderr)


@pytest.fixture
def toolkit(tmp_path: Path) -> Callable[..., Called]:
    """Call `toolkit …` in an empty folder."""
    return functools.partial(call_toolkit, cwd=tmp_path)


def needed(found: object, what: str) -> None:
    """Skip where something is missing, and say so; under CI that is a failure."""
    if found:
        return
    if os.environ.get("CI") == "true":
        pytest.fail(f"{what} is missing")
    pytest.skip(f"{what} is missing")


def ollama_binary() -> Path:
    """Return the program of a real Ollama server; skips where there is none."""
    found = find_ollama()
    if found is None or not found.exists():
        what = "an Ollama server (`ollama` on PATH, or a script that builds one)"
        outside.absent(what, "TOOLKIT_TEST_OLLAMA", "TOOLKIT_TEST_OLLAMA_INSTALL")
    return found


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[OllamaServer]:
    """A real Ollama server of this module's own."""
    with ollama_server(ollama_binary(), tmp_path_factory.mktemp("ollama")) as running:
        yield running
