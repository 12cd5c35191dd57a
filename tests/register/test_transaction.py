"""Names change together or not at all: every place to die, over a store of names in memory, and the machine's lock."""

import json
import multiprocessing
import time
from contextlib import suppress
from multiprocessing.synchronize import Event
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.core.errors import ToolkitError
from toolkit.ollama import transaction
from toolkit.ollama.transaction import LATEST, PREVIOUS, Transaction

TAGS = [LATEST, "q4_k_m", "f16", PREVIOUS]


class Died(BaseException):
    """The process is gone: nothing of ours runs any more."""


class Names:
    """Ollama's names as /api/tags, /api/copy and /api/delete know them; dies after `lives` changes."""

    def __init__(self, tags: dict[str, str], lives: int = 10**6) -> None:
        self.tags, self.lives, self.changes = dict(tags), lives, 0

    def respond(self, request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content or b"{}")
        if request.url.path == "/api/tags":
            listed = [{"model": f"m:{tag}", "digest": digest} for tag, digest in self.tags.items()]
            return httpx.Response(200, json={"models": listed})
        if self.changes >= self.lives:
            raise Died
        self.changes += 1
        if request.url.path == "/api/copy":
            source, target = (body[key].partition(":")[2] for key in ("source", "destination"))
            if source not in self.tags:
                return httpx.Response(404, json={"error": "not found"})
            self.tags[target] = self.tags[source]
            return httpx.Response(200)
        tag = body["model"].partition(":")[2]
        return httpx.Response(200 if self.tags.pop(tag, None) else 404, json={})

    def client(self) -> httpx.Client:
        return httpx.Client(base_url="http://names", transport=httpx.MockTransport(self.respond))

    def real(self) -> dict[str, str]:
        return {tag: digest for tag, digest in self.tags.items() if not tag.startswith("toolkit-")}


KEPT = transaction.copies_of([LATEST, "q4_k_m", "f16"], {PREVIOUS: "d" * 64})


def change(names: Names, token: str, made: dict[str, str], keep: bool) -> None:
    """Do what a registration does, by hand, without the way back."""
    work = Transaction(names.client(), "m", token)
    for tag, digest in made.items():
        names.tags[f"toolkit-new-{token}-{tag}"] = digest
    sources = {tag: work.temporary("new", tag) for tag in made}
    transaction.commit(work, sources, copies=KEPT if keep else {})
    transaction.undo(work, token)


digests = st.sampled_from(["a" * 64, "b" * 64, "c" * 64])
former = st.dictionaries(st.sampled_from(TAGS), digests)
wanted = st.fixed_dictionaries({LATEST: digests}, optional={"q4_k_m": digests, "f16": digests})
MINE, SECOND, THIRD = ("0" * 15 + digit for digit in "123")


@settings(max_examples=tries(150), suppress_health_check=list(HealthCheck))
@given(former, wanted, st.booleans(), st.data())
def test_dying_anywhere_is_undone_or_done(
    before: dict[str, str], made: dict[str, str], keep: bool, data: st.DataObject
) -> None:
    whole = Names(before)
    change(whole, MINE, made, keep)
    after = {**before, **made}
    if keep:
        kept = {KEPT[tag]: before[tag] for tag in made if before.get(tag, made[tag]) != made[tag]}
        if PREVIOUS in before and kept.get(PREVIOUS, before[PREVIOUS]) != before[PREVIOUS]:
            kept[KEPT[PREVIOUS]] = before[PREVIOUS]
        after |= kept
        assert set(before.values()) <= set(after.values()), "nothing that was replaced is lost"
    assert whole.tags == after
    lives = data.draw(st.integers(0, whole.changes))
    names = Names(before, lives)
    with suppress(Died):
        change(names, MINE, made, keep)
    assert all(names.real().get(tag) in (before.get(tag), after.get(tag)) for tag in {*before, *after})
    for token, lives in ((SECOND, data.draw(st.integers(0, 20))), (THIRD, 10**6)):
        names.lives = names.changes + lives  # the next call may die as well, while it undoes
        with suppress(Died):
            transaction.recover(Transaction(names.client(), "m", token))
    assert names.tags in (before, after)


ELSEWHERE = "f" * 16


def test_another_machines_commit_is_refused_until_it_is_named() -> None:
    names = Names({LATEST: "a" * 64}, lives=5)
    with pytest.raises(Died):
        change(names, ELSEWHERE, {LATEST: "b" * 64}, True)
    names.lives, left = 10**6, dict(names.tags)
    work = Transaction(names.client(), "m", MINE)
    with pytest.raises(ToolkitError, match=f"another machine .*`m:toolkit-commit-{ELSEWHERE}`") as caught:
        transaction.recover(work)
    assert f"`--replace m:toolkit-commit-{ELSEWHERE}`" in caught.value.hint and names.tags == left
    assert transaction.recover(work, replace=[f"toolkit-commit-{ELSEWHERE}"]), "`previous` had been made"
    assert names.tags == {LATEST: "a" * 64}


@pytest.mark.parametrize("lives", range(12))
def test_a_named_recovery_brings_former_models_back_from_wherever_it_stopped(lives: int) -> None:
    names = Names({LATEST: "a" * 64, "f16": "c" * 64}, lives)
    with suppress(Died):
        change(names, ELSEWHERE, {LATEST: "b" * 64, "q4_k_m": "b" * 64}, True)
    names.lives = 10**6
    whole = names.real() if f"toolkit-commit-{ELSEWHERE}" not in names.tags else {LATEST: "a" * 64, "f16": "c" * 64}
    transaction.recover(Transaction(names.client(), "m", MINE), replace=[f"toolkit-commit-{ELSEWHERE}"])
    assert names.real() == whole


def test_of_two_machines_that_commit_at_once_none_or_one_does() -> None:
    """The other's flag goes up between our look at the beginning and our own flag."""
    names = Names({LATEST: "a" * 64})
    work = Transaction(names.client(), "m", MINE)
    transaction.recover(work)
    names.tags |= {f"toolkit-commit-{ELSEWHERE}": "a" * 64, f"toolkit-new-{MINE}-latest": "b" * 64}
    with pytest.raises(ToolkitError, match="another machine is registering"):
        transaction.commit(work, {LATEST: work.temporary("new", LATEST)}, copies=KEPT)
    transaction.undo(work, MINE)
    assert names.tags == {LATEST: "a" * 64, f"toolkit-commit-{ELSEWHERE}": "a" * 64}


def test_what_another_machine_is_still_proving_is_left_alone() -> None:
    names = Names({LATEST: "a" * 64, f"toolkit-new-{ELSEWHERE}-latest": "b" * 64})
    for named in ([], [f"toolkit-commit-{ELSEWHERE}"]):
        transaction.recover(Transaction(names.client(), "m", MINE), replace=named)
    change(names, MINE, {LATEST: "c" * 64}, False)
    assert names.tags == {LATEST: "c" * 64, f"toolkit-new-{ELSEWHERE}-latest": "b" * 64}


def _hold(folder: str, ready: Event) -> None:
    import os

    os.environ["XDG_CACHE_HOME"] = folder
    with transaction.alone("m", 1):
        ready.set()
        time.sleep(60)


@pytest.mark.slow
def test_one_machine_does_one_call_a_name_and_a_killed_one_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(20)
    with (
        pytest.raises(ToolkitError, match="another toolkit process on this machine is registering `M`"),
        transaction.alone("M", 0.3),
    ):
        pass
    assert "waiting for it" in capsys.readouterr().err
    with transaction.alone("other", 0.1) as machine:
        assert len(machine) == 8
    holder.kill()
    holder.join()
    with transaction.alone("m", 5):
        pass
