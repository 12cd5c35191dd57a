"""Names on a server change all together or not at all, whatever is killed and whoever else is at work.

Ollama can only copy and delete single names. A registration therefore works under temporary tags of the model's own
name, `toolkit-KIND-TOKEN-TAG`; TOKEN is unique to one call on one machine. The kinds:

- new: a model that is made and proven, to become TAG.
- live: rewritten every few seconds as long as the call lives; its age on the server says whether it still does.
- commit: from before the first real tag is touched until all of them are right. Deleting it is the one step that makes
  the registration valid: while it stands, `old` and `gone` are the truth.
- old: what TAG held before. gone: TAG held nothing before (the model itself is what TAG gets).

One machine does one registration of a name at a time, by a lock file that the kernel frees when the process dies: a
token of this machine that is not ours is dead. A token of another machine is dead once all its tags are older than
LEASE. The dead are undone by the next call. Between machines, `commit` is also the flag of mutual exclusion: whoever
raises it looks for others and lowers it again if there is one. Whoever undoes a dead call deletes its `new` first, from
which its commit copies: should it only have slept, it fails there and touches nothing more.
"""

import datetime
import email.utils
import fcntl
import hashlib
import os
import platform
import random
import re
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import ollama

from toolkit.core import console, files
from toolkit.core.errors import ToolkitError
from toolkit.ollama import blobs, server

TEMPORARY = re.compile(r"toolkit-(new|live|commit|old|gone)-([0-9a-f]{16})(?:-(.+))?")
LATEST = "latest"
PREVIOUS = "previous"
LEASE = 60.0  # seconds after which a silent call on another machine counts as dead
BEAT = 10.0


@dataclass(frozen=True)
class Held:
    """What one tag holds: the manifest's digest (hex) as the server lists it, and its age in seconds."""

    digest: str
    age: float


@dataclass(frozen=True)
class Work:
    """One call's hold on a name: `token` marks its temporary tags, `patience` is how long it waits for others (s)."""

    http: httpx.Client
    name: str
    token: str
    patience: float

    def temporary(self, kind: str, tag: str = "", token: str = "") -> str:
        """Return the full name of a temporary tag, of this call unless another's token is given."""
        return f"{self.name}:toolkit-{kind}-{token or self.token}" + (f"-{tag}" if tag else "")

    def held(self) -> dict[str, Held]:
        """Return all tags of the name that the server lists, temporary ones too; ages are by the server's clock."""
        reply = server.settled(lambda: server.request(self.http, "GET", "/api/tags"))
        dated = email.utils.parsedate_to_datetime(reply.headers["Date"]) if "Date" in reply.headers else None
        now = (dated or datetime.datetime.now(datetime.UTC)).timestamp()
        mine = server.listed_name(self.name, "")
        return {
            model.model.lower().removeprefix(mine): Held(
                str(model.digest), now - model.modified_at.timestamp() if model.modified_at else 0.0
            )
            for model in ollama.ListResponse.model_validate(reply.json()).models
            if model.model and model.model.lower().startswith(mine)
        }


def real(held: dict[str, Held]) -> dict[str, str]:
    """Return the tags that are no temporary ones, with their digests."""
    return {tag: entry.digest for tag, entry in held.items() if not TEMPORARY.fullmatch(tag)}


@contextmanager
def alone(name: str, patience: float) -> Iterator[str]:
    """Hold this machine's lock on a name; yields eight hex digits that no other machine or user has.

    Waits up to `patience` seconds for another call, and says so; then raises ToolkitError.
    """
    path = files.cache_folder() / "locks" / f"{hashlib.sha256(name.lower().encode()).hexdigest()[:16]}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        deadline = time.monotonic() + patience
        waiting = False
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if time.monotonic() >= deadline:
                    raise ToolkitError(
                        f"another toolkit on this machine is registering `{name}`, for more than {patience:g} s",
                        hint="wait for it to end; `--set ollama.timeout=SECONDS` says how long",
                    ) from None
                if not waiting:
                    console.say(f"another toolkit on this machine is registering `{name}`: waiting for it")
                    waiting = True
                time.sleep(0.2)
        boot = Path("/proc/sys/kernel/random/boot_id")
        stat = os.fstat(file.fileno())
        # A container or a copied disk may share each of these with another, but not all of them.
        parts = (platform.node(), boot.read_text() if boot.exists() else "", path.resolve(), stat.st_dev, stat.st_ino)
        yield hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:8]


@contextmanager
def begun(http: httpx.Client, name: str, patience: float) -> Iterator[Work]:
    """Work on a name: undo dead calls first; at the end delete this call's temporary tags, and undo it if it failed."""
    with alone(name, patience) as machine:
        work = Work(http, name, machine + uuid.uuid4().hex[:8], patience)
        if recover(work):
            console.warn(f"an earlier registration of `{name}` was cut off: its former models are back")
        beating = _beat(work)
        try:
            yield work
        except BaseException:
            beating()
            try:
                undo(work, work.token)
            except Exception as exc:  # what made us give up matters more, and is raised next
                console.warn(
                    f"the server could not be cleaned up ({type(exc).__name__}); the next `toolkit register` does it: "
                    f"`{name}` holds its former model, or gets it back then"
                )
            raise
        beating()
        try:
            undo(work, work.token)
        except (ollama.ResponseError, httpx.HTTPError, ConnectionError) as exc:
            console.warn(
                f"temporary names `{name}:toolkit-…` are left ({type(exc).__name__}); the next call deletes them"
            )


def _beat(work: Work) -> Callable[[], None]:
    """Keep `live` young from another thread, once there is a `new` to copy; returns what ends that."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(BEAT):
            with suppress(ollama.ResponseError, httpx.HTTPError, ValueError):  # the main thread meets it too
                source = next(iter(_of(work.held(), work.token, "new").values()), "")
                if source and not ended.is_set():
                    blobs.copy(work.http, f"{work.name}:{source}", work.temporary("live"))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()

    def end() -> None:
        ended.set()
        thread.join(server.QUICK_SECONDS)

    return end


def _of(held: dict[str, Held], token: str, kind: str) -> dict[str, str]:
    """Return a call's temporary tags of one kind: the real tag they stand for (or empty) → the temporary tag."""
    matches = (TEMPORARY.fullmatch(tag) for tag in held)
    return {match[3] or "": match[0] for match in matches if match and match[1] == kind and match[2] == token}


def _tokens(held: dict[str, Held]) -> dict[str, float]:
    """Return the tokens of all temporary tags with the age of their youngest tag, in seconds."""
    ages: dict[str, float] = {}
    for tag, entry in held.items():
        match = TEMPORARY.fullmatch(tag)
        if match:
            ages[match[2]] = min(entry.age, ages.get(match[2], entry.age))
    return ages


def _dead(work: Work, held: dict[str, Held]) -> list[str]:
    machine = work.token[:8]
    return [
        token
        for token, age in _tokens(held).items()
        if token != work.token and (token.startswith(machine) or age > LEASE)
    ]


def recover(work: Work) -> bool:
    """Undo what dead calls left; say whether former models had to be put back."""
    held = work.held()
    dead = _dead(work, held)
    committing = [tag for token in dead for tag in _of(held, token, "commit").values()]
    if committing:
        with exclusive(work, f"{work.name}:{committing[0]}"):
            pass  # it undoes the dead before the block
        return real(work.held()) != real(held)
    for token in dead:
        undo(work, token)
    return False


@contextmanager
def exclusive(work: Work, source: str) -> Iterator[dict[str, Held]]:
    """Be the only one who changes real tags of the name; yields what the server holds, the dead undone.

    `source` is any model that exists: the flag is a copy of it. At the end the flag is lowered, which makes valid what
    was done; if the block fails it stays, for `undo`. Raises ToolkitError if others keep the flag for too long.
    """
    flag = work.temporary("commit")
    deadline = time.monotonic() + work.patience
    waiting = False
    while True:
        blobs.copy(work.http, source, flag)
        held = work.held()
        dead = _dead(work, held)
        others = [t for t in _tokens(held) if t != work.token and t not in dead and _of(held, t, "commit")]
        if not others:
            break
        blobs.delete(work.http, flag)
        if time.monotonic() >= deadline:
            raise ToolkitError(
                f"another machine is registering `{work.name}`, for more than {work.patience:g} s",
                hint="wait for it to end; `--set ollama.timeout=SECONDS` says how long",
            )
        if not waiting:
            console.say(f"another machine is registering `{work.name}`: waiting for it")
            waiting = True
        time.sleep(random.uniform(0.1, 0.5))
    for token in dead:
        undo(work, token)
    yield work.held() if dead else held
    try:
        blobs.delete(work.http, flag)
    except httpx.TransportError:
        blobs.delete(work.http, flag)  # it may have been done, with its answer lost: asked again, the server says so


def commit(
    work: Work,
    sources: dict[str, str],
    *,
    keep: bool,
    guard: Callable[[dict[str, str]], None] = lambda held: None,
) -> dict[str, str]:
    """Give models their real tags, `latest` last; return tag → manifest digest as the server lists it.

    `sources` is tag → the model that it gets. `keep`: what `latest` held becomes `previous` where it changes. `guard`
    sees the real tags with their digests just before anything is changed, and may raise.
    """
    with exclusive(work, sources[LATEST]) as held:
        guard(real(held))
        made = {tag: held[source.rpartition(":")[2].lower()].digest for tag, source in sources.items()}
        if keep and LATEST in held and held[LATEST].digest != made[LATEST]:
            sources = {**sources, PREVIOUS: f"{work.name}:{LATEST}"}
            made = {**made, PREVIOUS: held[LATEST].digest}
        for tag, source in sources.items():
            if source != work.temporary("new", tag):
                blobs.copy(work.http, source, work.temporary("new", tag))
            if tag in held:
                blobs.copy(work.http, f"{work.name}:{tag}", work.temporary("old", tag))
            else:
                blobs.copy(work.http, work.temporary("new", tag), work.temporary("gone", tag))
        kept = work.held()  # what is not safe on the disk now must not be overwritten
        for kind, want in (("new", made), ("old", {tag: held[tag].digest for tag in made if tag in held})):
            _same(work, want, {tag: kept[temporary].digest for tag, temporary in _of(kept, work.token, kind).items()})
        for tag in sorted(made, key=lambda tag: (tag == LATEST, tag)):
            if tag not in held or held[tag].digest != made[tag]:
                blobs.copy(work.http, work.temporary("new", tag), f"{work.name}:{tag}")
        _same(work, made, real(work.held()))
    return made


def _same(work: Work, want: dict[str, str], found: dict[str, str]) -> None:
    wrong = [tag for tag, digest in want.items() if found.get(tag) != digest]
    if wrong:
        raise ToolkitError(
            f"the Ollama server does not list `{work.name}:{wrong[0]}` as the model that it should be",
            hint="another program may be changing the same name, or the server's disk be full: run the command again",
        )


def undo(work: Work, token: str) -> None:
    """Delete a call's temporary tags; if it was in its commit, first put every real tag back to what it held."""
    held = work.held()
    tags = {kind: _of(held, token, kind) for kind in ("new", "live", "commit", "old", "gone")}
    for temporary in tags["new"].values():
        blobs.delete(work.http, f"{work.name}:{temporary}")
    if tags["commit"]:
        for tag, temporary in tags["old"].items():
            if tag not in held or held[tag].digest != held[temporary].digest:
                blobs.copy(work.http, f"{work.name}:{temporary}", f"{work.name}:{tag}")
        for tag, temporary in tags["gone"].items():
            if tag in held and held[tag].digest == held[temporary].digest:
                blobs.delete(work.http, f"{work.name}:{tag}")
    for kind in ("commit", "old", "gone", "live"):
        for temporary in tags[kind].values():
            blobs.delete(work.http, f"{work.name}:{temporary}")
