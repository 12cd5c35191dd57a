"""Names change together or not at all: every place to die, over a store of names in memory, and the machine's lock."""

import datetime
import json
import multiprocessing
import time
from contextlib import suppress

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from toolkit.core.errors import ToolkitError
from toolkit.ollama import transaction
from toolkit.ollama.transaction import LATEST, PREVIOUS, Work

TAGS = [LATEST, "q4_k_m", "f16", PREVIOUS]


class Died(BaseException):
    """The process is gone: nothing of ours runs any more."""


class Names:
    """Ollama's names as /api/tags, /api/copy and /api/delete know them; dies after `lives` changes."""

    def __init__(self, tags, lives=10**6):
        self.tags, self.lives, self.changes = dict(tags), lives, 0
        self.written = {}
        self.clock = 1e9

    def respond(self, request):
        self.clock += 0.01
        body = json.loads(request.content or b"{}")
        if request.url.path == "/api/tags":
            listed = [
                {"model": f"m:{tag}", "digest": digest, "modified_at": self._time(self.written.get(tag, 0))}
                for tag, digest in self.tags.items()
            ]
            date = datetime.datetime.fromtimestamp(self.clock, datetime.UTC).strftime("%a, %d %b %Y %H:%M:%S GMT")
            return httpx.Response(200, json={"models": listed}, headers={"Date": date})
        if self.changes >= self.lives:
            raise Died
        self.changes += 1
        if request.url.path == "/api/copy":
            source, target = (body[key].partition(":")[2] for key in ("source", "destination"))
            if source not in self.tags:
                return httpx.Response(404, json={"error": "not found"})
            self.tags[target] = self.tags[source]
            self.written[target] = self.clock
            return httpx.Response(200)
        tag = body["model"].partition(":")[2]
        return httpx.Response(200 if self.tags.pop(tag, None) else 404, json={})

    def _time(self, seconds):
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat()

    def client(self):
        return httpx.Client(base_url="http://names", transport=httpx.MockTransport(self.respond))

    def real(self):
        return {tag: digest for tag, digest in self.tags.items() if not tag.startswith("toolkit-")}


def change(names, token, made, keep):
    """Do what a registration does, by hand, without the way back."""
    work = Work(names.client(), "m", token, 1)
    for tag, digest in made.items():
        names.tags[f"toolkit-new-{token}-{tag}"] = digest
        names.written[f"toolkit-new-{token}-{tag}"] = names.clock
    sources = {tag: work.temporary("new", tag) for tag in made}
    transaction.commit(work, sources, keep=keep)
    transaction.undo(work, token)


digests = st.sampled_from(["a" * 64, "b" * 64, "c" * 64])
former = st.dictionaries(st.sampled_from(TAGS), digests)
wanted = st.fixed_dictionaries({LATEST: digests}, optional={"q4_k_m": digests, "f16": digests})
MINE, SECOND, THIRD = ("0" * 15 + digit for digit in "123")


@settings(max_examples=150, suppress_health_check=list(HealthCheck))
@given(former, wanted, st.booleans(), st.data())
def test_dying_anywhere_is_undone_or_done(before, made, keep, data):
    whole = Names(before)
    change(whole, MINE, made, keep)
    after = {**before, **made}
    if keep and LATEST in before and before[LATEST] != made[LATEST]:
        after[PREVIOUS] = before[LATEST]
    assert whole.tags == after
    lives = data.draw(st.integers(0, whole.changes))
    names = Names(before, lives)
    with suppress(Died):
        change(names, MINE, made, keep)
    assert all(names.real().get(tag) in (before.get(tag), after.get(tag)) for tag in {*before, *after})
    for token, lives in ((SECOND, data.draw(st.integers(0, 20))), (THIRD, 10**6)):
        names.lives = names.changes + lives  # the next call may die as well, while it undoes
        with suppress(Died):
            transaction.recover(Work(names.client(), "m", token, 1))
    assert names.tags in (before, after)


def test_a_call_of_another_machine_is_left_alone_until_it_is_silent_for_long():
    names = Names({LATEST: "a" * 64})
    elsewhere = "f" * 16
    names.lives = 6
    with pytest.raises(Died):
        change(names, elsewhere, {LATEST: "b" * 64}, True)
    names.lives, left = 10**6, dict(names.tags)
    assert len(left) > 3
    work = Work(names.client(), "m", MINE, 0.1)
    assert not transaction.recover(work) and names.tags == left
    names.clock += transaction.LEASE + 2
    transaction.recover(work)
    assert names.tags == {LATEST: "a" * 64}


def _hold(folder, ready):
    import os

    os.environ["XDG_CACHE_HOME"] = folder
    with transaction.alone("m", 1):
        ready.set()
        time.sleep(60)


def test_one_machine_does_one_call_a_name_and_a_killed_one_is_no_obstacle(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    holder = context.Process(target=_hold, args=(str(tmp_path), ready))
    holder.start()
    assert ready.wait(20)
    with (
        pytest.raises(ToolkitError, match="another toolkit on this machine is registering `M`"),
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
