"""kill -9 at every step, and two at once: the former model answers, and the next call leaves no temporary name."""

import os
import random
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.register.conftest import Run, bare_run, temporary
from tests.support.child import go, nursery
from tests.support.faults import Handler, proxy
from tests.support.ollama_server import OllamaServer
from toolkit.core.errors import ToolkitError
from toolkit.ollama import server, transaction
from toolkit.register.rollback import roll_back

pytestmark = [pytest.mark.ollama, pytest.mark.usefixtures("no_question")]

CHANGES = ("POST /api/blobs", "POST /api/create", "POST /api/copy", "DELETE /api/delete")
ENOUGH = 60


def recover(run: Run) -> None:
    with server.http(run.config.ollama) as http, transaction.begin(http, run.name, 120):
        pass


def real(run: Run) -> dict[str, str]:
    return {tag: digest for tag, digest in run.held().items() if not tag.startswith("toolkit-")}


def kill_at_every_change(
    ollama: OllamaServer,
    folder: Path,
    name: str,
    seed: int,
    what: str,
    before: dict[str, str],
    once_done: Callable[[], None],
) -> int:
    """Kill a call just after its nth change on the server, for every n; returns how many there were.

    After each kill the real tags must be what they were, or what the call makes of them, and after the next call one
    of both as a whole. `once_done` brings back what was.
    """
    run = bare_run(folder / "reader", ollama.url, name, seed=5)
    after: dict[str, str] = {}
    with proxy(ollama.url) as (url, passing), nursery(folder / "child", url, name, seed, what) as children:
        for number in range(ENOUGH):
            changes = 0
            pid = children.begin()

            def strike(handler: Handler, number: int = number, pid: int = pid) -> bool:
                nonlocal changes
                changes += f"{handler.command} {handler.path}".startswith(CHANGES)
                if changes > number:
                    os.kill(pid, signal.SIGKILL)
                    return handler.reset()
                return False

            passing.then = strike if number else lambda handler: False
            go(pid)
            status = children.end()
            passing.then = lambda handler: False
            if not number:  # the first is let through, to know what is meant
                assert status == 0
                after = real(run)
                assert after != before
                once_done()
                continue
            if status == 0:
                return number - 1
            assert status == -signal.SIGKILL
            found = real(run)
            for tag in {*before, *after}:
                assert found.get(tag) in (before.get(tag), after.get(tag))
            if before and number % 4 == 0:  # loading a model takes the most time here
                assert run.answer()
            recover(run)
            assert not temporary(run)
            assert real(run) in (before, after), f"after change {number}"
            if real(run) == after:
                once_done()
    raise AssertionError("the call has no end")


@pytest.mark.parametrize("what", ["a first registration", "a second registration", "a rollback"])
def test_killed_at_any_step(ollama: OllamaServer, tmp_path: Path, what: str) -> None:
    name = what.rpartition(" ")[0].replace(" ", "-")
    former = bare_run(tmp_path / "former", ollama.url, name, seed=5)
    if what != "a first registration":
        former.register()
    if what == "a rollback":
        bare_run(tmp_path / "newer", ollama.url, name, seed=6).register()
    before, client = former.held(), former.client()
    for tag in before:
        client.copy(f"{name}:{tag}", f"kept-{name}:{tag}")

    def again() -> None:
        for tag in real(former):
            client.delete(f"{name}:{tag}")
        for tag in before:
            client.copy(f"kept-{name}:{tag}", f"{name}:{tag}")

    mode = "rollback" if what == "a rollback" else "register"
    steps = kill_at_every_change(ollama, tmp_path, name, 7, mode, before, again)
    assert steps >= {"a first registration": 14, "a second registration": 17, "a rollback": 12}[what]


SIGNALS = [
    ("a second registration", signal.SIGTERM),
    ("a rollback", signal.SIGHUP),
    ("a rollback", signal.SIGINT),
    *(
        pytest.param(*more, marks=pytest.mark.exhaustive)
        for more in (
            ("a second registration", signal.SIGINT),
            ("a second registration", signal.SIGHUP),
            ("a rollback", signal.SIGTERM),
        )
    ),
]


@pytest.mark.parametrize(("what", "number"), SIGNALS)
def test_a_signal_at_any_step_is_undone_by_the_process_itself(
    ollama: OllamaServer, tmp_path: Path, what: str, number: int
) -> None:
    """Also where it comes again while the former models are restored: a closed terminal and `timeout` send two."""
    name = f"signalled-{what.split()[-1]}-{number.real}"
    former = bare_run(tmp_path / "former", ollama.url, name, seed=41)
    former.register()
    if what == "a rollback":
        bare_run(tmp_path / "newer", ollama.url, name, seed=42).register()
    before = real(former)
    mode = "rollback" if what == "a rollback" else "register"
    steps = 0
    with (
        proxy(ollama.url) as (url, passing),
        nursery(tmp_path / "child", url, name, 43, mode) as children,
    ):
        for at in range(1, ENOUGH, 3):
            pid, changes = children.begin(), 0

            def strike(handler: Handler, at: int = at, pid: int = pid) -> bool:
                nonlocal changes
                changes += f"{handler.command} {handler.path}".startswith(CHANGES)
                if changes in (at, at + 1):
                    os.kill(pid, number)
                return False

            passing.then = strike
            go(pid)
            status = children.end()
            passing.then = lambda handler: False
            assert not temporary(former), f"at change {at}"
            if changes < at:
                assert status == 0
                break
            assert status in (0, 130)
            if real(former) != before:
                break  # the last steps only tidy up: the registration is valid
            steps += status == 130
    assert steps >= 3


def whole(run: Run, others: dict[int, dict[str, str]]) -> int:
    """Say which registration the real tags are of; all must be of one."""
    held = real(run)
    owner = next(name for name, digests in others.items() if digests["latest"] == held["latest"])
    assert {tag: held[tag] for tag in others[owner]} == others[owner]
    return owner


@pytest.mark.parametrize("rounds", [4, pytest.param(20, marks=pytest.mark.exhaustive)])
@pytest.mark.parametrize("machines", ["one", "two"])
def test_two_registrations_at_once_end_as_one_of_them(
    ollama: OllamaServer, tmp_path: Path, machines: str, rounds: int
) -> None:
    name = f"shared-{machines}-{rounds}"
    expected = {}
    for seed in (11, 12):
        run = bare_run(tmp_path / str(seed), ollama.url, name, seed=seed)
        expected[seed] = {tag: values["digest"] for tag, values in run.register().figures["tags"].items()}

    def slowly(handler: Handler) -> bool:
        time.sleep(random.random() * 0.02)
        return False

    homes = [{"XDG_CACHE_HOME": str(tmp_path / f"machine{index if machines == 'two' else 0}")} for index in (0, 1)]
    last = set()
    with proxy(ollama.url) as (url, passing):
        passing.fault = slowly
        with (
            nursery(tmp_path / "a", url, name, 11, **homes[0]) as first,
            nursery(tmp_path / "b", url, name, 12, **homes[1]) as second,
        ):
            for _ in range(rounds):
                pids = first.begin(), second.begin()
                for pid in pids:
                    go(pid)
                ends = first.end(), second.end()
                # On one machine the second waits; on two it may be refused.
                assert set(ends) <= ({0} if machines == "one" else {0, 1})
                assert not temporary(run)
                last.add(whole(run, expected))
                assert run.held()["previous"] in {digests["latest"] for digests in expected.values()}
    assert last


def kill_elsewhere(ollama: OllamaServer, folder: Path, name: str, seed: int) -> dict[str, str]:
    """Register `name` on another machine and kill it once `latest` is changed; returns what the name held before."""
    former = bare_run(folder / "former", ollama.url, name, seed=seed)
    former.register()
    before = former.held()
    away = {"XDG_CACHE_HOME": str(folder / "away")}
    with proxy(ollama.url) as (url, passing), nursery(folder / "b", url, name, seed + 1, **away) as child:
        pid = child.begin()

        def strike(handler: Handler) -> bool:
            if former.held()["latest"] == before["latest"]:
                return False
            os.kill(pid, signal.SIGKILL)
            return handler.reset()

        passing.then = strike
        go(pid)
        assert child.end() == -signal.SIGKILL
    return before


def test_what_another_machine_left_is_refused_and_naming_it_puts_former_models_back(
    ollama: OllamaServer, tmp_path: Path
) -> None:
    before = kill_elsewhere(ollama, tmp_path, "elsewhere", 21)
    newer = bare_run(tmp_path / "newer", ollama.url, "elsewhere", seed=23)
    left = newer.held()
    assert left["latest"] != before["latest"]
    for refused in (newer.register, lambda: roll_back(newer.config)):
        with pytest.raises(ToolkitError, match=r"another machine .*`elsewhere:toolkit-commit-[0-9a-f]{16}`") as caught:
            refused()
        mark = next(tag for tag in left if tag.startswith("toolkit-commit-"))
        assert f"`--replace elsewhere:{mark}` restores the earlier models" in caught.value.hint
        assert newer.held() == left
    tags = newer.register(f"elsewhere:{mark}").figures["tags"]
    held = newer.held()
    kept = {tag: held.pop(tag) for tag in list(held) if tag.startswith("previous")}
    assert held == {tag: values["digest"] for tag, values in tags.items()}
    assert kept == {"previous": before["latest"], "previous-f16": before["f16"], "previous-f32": before["f32"]}


def test_what_another_machine_left_is_cleared_by_the_same_command_there(ollama: OllamaServer, tmp_path: Path) -> None:
    before = kill_elsewhere(ollama, tmp_path, "back-there", 26)
    away = {"XDG_CACHE_HOME": str(tmp_path / "away")}
    with nursery(tmp_path / "b", ollama.url, "back-there", 27, **away) as child:
        go(child.begin())
        assert child.end() == 0
    run = bare_run(tmp_path / "reader", ollama.url, "back-there", seed=26)
    assert run.held()["previous"] == before["latest"] and not temporary(run)


def test_another_machine_that_only_slept_changes_nothing_more(ollama: OllamaServer, tmp_path: Path) -> None:
    former = bare_run(tmp_path / "former", ollama.url, "sleeper", seed=31)
    former.register()
    before = former.held()
    away = {"XDG_CACHE_HOME": str(tmp_path / "away")}
    with proxy(ollama.url) as (url, passing), nursery(tmp_path / "b", url, "sleeper", 32, **away) as child:
        pid = child.begin()
        slept = threading.Event()

        def strike(handler: Handler) -> bool:
            if any("-commit-" in tag for tag in former.held()) and not slept.is_set():
                os.kill(pid, signal.SIGSTOP)
                slept.set()
            return False

        passing.then = strike
        go(pid)
        assert slept.wait(30)
        passing.then = lambda handler: False
        newer = bare_run(tmp_path / "newer", ollama.url, "sleeper", seed=33)
        newer.register(*(f"sleeper:{tag}" for tag in newer.held() if "-commit-" in tag))
        held = newer.held()
        os.kill(pid, signal.SIGCONT)
        assert child.end() == 1
    assert newer.held() == held
    assert held["previous"] == before["latest"] and not temporary(newer)
