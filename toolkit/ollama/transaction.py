"""Names on a server change all together or not at all, even if a process is killed.

Ollama can only copy and delete single names. A registration therefore works under temporary tags of the model's own
name, `toolkit-KIND-TOKEN-TAG`; TOKEN is unique to one call on one machine. The kinds:

- new: a model that is made and proven, to become TAG.
- commit: from before the first real tag is touched until all of them are right. Deleting it is the one step that makes
  the registration valid: while it stands, `old` and `gone` are the truth.
- old: what TAG held before. gone: TAG held nothing before (the model itself is what TAG gets).

One machine does one registration of a name at a time, by a lock file that the kernel frees when the process dies. A
token of this machine that is not ours is dead, and the next call undoes it. Nobody can know whether another machine's
call is dead. While its `commit` stands, others are refused, unless they were asked to undo it. Undoing deletes `new`
first, from which a commit copies. If that call is alive, it fails there and changes nothing more.
"""

import fcntl
import hashlib
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import httpx

from toolkit.core import console, places, signals
from toolkit.core.errors import ToolkitError
from toolkit.ollama import blobs, server
from toolkit.ollama.failures import ServerError

TEMPORARY = re.compile(r"toolkit-(new|commit|old|gone)-([0-9a-f]{16})(?:-(.+))?")
LATEST = "latest"
PREVIOUS = "previous"


@dataclass(frozen=True)
class Transaction:
    """One call's hold on a name: `token` marks its temporary tags, and begins with the machine's eight digits."""

    http: httpx.Client
    name: str
    token: str

    def temporary(self, kind: str, tag: str = "") -> str:
        """Return the full name of a temporary tag of this call."""
        return f"{self.name}:toolkit-{kind}-{self.token}" + (f"-{tag}" if tag else "")

    def held(self) -> dict[str, str]:
        """Return all tags of the name that the server lists, temporary ones too: tag → manifest digest (hex)."""
        mine = server.listed_name(self.name, "")
        listed = server.held(self.http).items()
        return {name.removeprefix(mine): digest for name, digest in listed if name.startswith(mine)}

    def others(self, held: dict[str, str]) -> list[str]:
        """Return the tokens of other machines whose commit stands."""
        matches = [match for match in map(TEMPORARY.fullmatch, held) if match and match[1] == "commit"]
        return [match[2] for match in matches if not match[2].startswith(self.token[:8])]

    def refuse_others(self, held: dict[str, str]) -> None:
        """Raise ToolkitError if another machine's commit stands."""
        for token in self.others(held):
            raise ToolkitError(
                f"another machine is registering `{self.name}`, or was interrupted: "
                f"`{self.name}:toolkit-commit-{token}` exists",
                hint="wait for it, or run the same command there; if that machine is gone, `toolkit register` with "
                f"`--replace {server.listed_name(self.name, f'toolkit-commit-{token}')}` restores the earlier models",
            )


def copies_of(tags: Iterable[str], foreign: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Return for each tag the one that keeps what it held: `previous` for `latest`, else `previous-TAG`.

    `foreign` are tags of other makers with their digests: their copies have names that nothing takes again.
    """
    rolling = {tag: PREVIOUS if tag == LATEST else f"{PREVIOUS}-{tag}" for tag in tags}
    return rolling | {tag: f"{tag}-kept-{digest[:8]}" for tag, digest in foreign.items()}


def user_tags(held: dict[str, str]) -> dict[str, str]:
    """Return the tags that are not temporary, with their digests."""
    return {tag: digest for tag, digest in held.items() if not TEMPORARY.fullmatch(tag)}


@contextmanager
def alone(name: str, patience: float) -> Iterator[str]:
    """Hold this machine's lock on a name; yields eight hex digits that no other machine or user has.

    Waits up to `patience` seconds for another call, and says so; then raises ToolkitError.
    """
    path = places.cache_folder() / "locks" / f"{hashlib.sha256(name.lower().encode()).hexdigest()[:16]}.lock"
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
                        f"another toolkit process on this machine is registering `{name}`: waited {patience:g} s",
                        hint="wait for it to end; `--set ollama.timeout=SECONDS` sets how long to wait",
                    ) from None
                if not waiting:
                    console.info(f"another toolkit process on this machine is registering `{name}`: waiting for it")
                    waiting = True
                time.sleep(0.2)
        boot = Path("/proc/sys/kernel/random/boot_id")
        stat = os.fstat(file.fileno())
        # A container or a copied disk may share each of these with another, but not all of them.
        parts = (platform.node(), boot.read_text() if boot.exists() else "", path.resolve(), stat.st_dev, stat.st_ino)
        yield hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()[:8]


@contextmanager
def begin(http: httpx.Client, name: str, patience: float, *, replace: Collection[str] = ()) -> Iterator[Transaction]:
    """Work on a name: undo dead calls first; at the end delete this call's temporary tags, and undo it if it failed.

    Raises ToolkitError while another machine's commit stands, unless `replace` names its tag: then it is undone too.
    """
    with alone(name, patience) as machine:
        work = Transaction(http, name, machine + uuid.uuid4().hex[:8])
        if recover(work, replace=replace):
            console.warn(f"an earlier registration of `{name}` was interrupted: its earlier models are restored")
        try:
            yield work
        except BaseException:
            try:
                with signals.uninterrupted(f"restoring what `{name}` held; if it fails, the next call does it"):
                    undo(work, work.token)
            except Exception as exc:  # what made us give up matters more, and is raised next
                console.warn(
                    f"the server could not be cleaned up ({type(exc).__name__}); the next `toolkit register` will do "
                    f"it: `{name}` holds its earlier model, or gets it back then"
                )
            raise
        try:
            with signals.uninterrupted(f"deleting temporary names of `{name}`"):
                undo(work, work.token)
        except (ServerError, httpx.HTTPError, ConnectionError) as exc:
            console.warn(
                f"temporary names `{name}:toolkit-…` are left ({type(exc).__name__}); the next call deletes them"
            )


def _of(held: dict[str, str], token: str, kind: str) -> dict[str, str]:
    """Return a call's temporary tags of one kind: the real tag they stand for (or empty) → the temporary tag."""
    matches = (TEMPORARY.fullmatch(tag) for tag in held)
    return {match[3] or "": match[0] for match in matches if match and match[1] == kind and match[2] == token}


def recover(work: Transaction, *, replace: Collection[str] = ()) -> bool:
    """Undo what dead calls of this machine left; say whether former models had to be restored.

    Raises ToolkitError while another machine's commit stands, unless `replace` names its tag: then it is undone too.
    """
    held = work.held()
    dead = {match[2] for match in map(TEMPORARY.fullmatch, held) if match and match[2].startswith(work.token[:8])}
    dead |= {token for token in work.others(held) if f"toolkit-commit-{token}" in replace}
    for token in sorted(dead - {work.token}):
        undo(work, token)
    found = work.held() if dead else held
    work.refuse_others(found)
    return user_tags(found) != user_tags(held)


def commit(
    work: Transaction,
    sources: dict[str, str],
    *,
    copies: Mapping[str, str],
    guard: Callable[[dict[str, str]], None] = lambda held: None,
) -> dict[str, str]:
    """Give models their real tags, `latest` last; return tag → manifest digest as the server lists it.

    `sources` is tag → the model that it gets, `copies` tag → the tag that keeps what it held, where it changes. `guard`
    sees the real tags with their digests just before anything is changed, and may raise. If this raises, the commit
    stands, for `undo`.
    """
    blobs.copy(work.http, sources[LATEST], work.temporary("commit"))
    held = work.held()
    work.refuse_others(held)  # of two that begin at once, one sees the other's commit at least
    guard(user_tags(held))
    made = {tag: held[source.rpartition(":")[2].lower()] for tag, source in sources.items()}
    sources = dict(sources)
    for tag in sorted(copies, key=lambda tag: tag not in sources):  # what a copy replaces may have one itself
        if tag in held and held[tag] != made.get(tag, held[tag]):
            sources[copies[tag]], made[copies[tag]] = f"{work.name}:{tag}", held[tag]
    _keep(work, sources, made, held)
    for tag in sorted(made, key=lambda tag: (tag == LATEST, tag)):
        if held.get(tag) != made[tag]:
            blobs.copy(work.http, work.temporary("new", tag), f"{work.name}:{tag}")
    _same(work, made, user_tags(work.held()))
    try:
        blobs.delete(work.http, work.temporary("commit"))
    except httpx.TransportError:  # it may have been done, with its answer lost: asked again, the server says so
        blobs.delete(work.http, work.temporary("commit"))
    return made


def _keep(work: Transaction, sources: dict[str, str], made: dict[str, str], held: dict[str, str]) -> None:
    """Copy what tags get and what they hold to temporary tags; what is not safe on the disk must not be overwritten."""
    for tag, source in sources.items():
        if source != work.temporary("new", tag):
            blobs.copy(work.http, source, work.temporary("new", tag))
        if tag in held:
            blobs.copy(work.http, f"{work.name}:{tag}", work.temporary("old", tag))
        else:
            blobs.copy(work.http, work.temporary("new", tag), work.temporary("gone", tag))
    kept = work.held()
    for kind, want in (("new", made), ("old", {tag: held[tag] for tag in made if tag in held})):
        _same(work, want, {tag: kept[temporary] for tag, temporary in _of(kept, work.token, kind).items()})


def _same(work: Transaction, want: dict[str, str], found: dict[str, str]) -> None:
    wrong = [tag for tag, digest in want.items() if found.get(tag) != digest]
    if wrong:
        raise ToolkitError(
            f"the Ollama server does not list `{work.name}:{wrong[0]}` as the model that it should be",
            hint="another program may be changing the same name, or the server's disk is full: run the command again",
        )


def undo(work: Transaction, token: str) -> None:
    """Delete a call's temporary tags; if it was in its commit, first put every real tag back to what it held."""
    held = work.held()
    tags = {kind: _of(held, token, kind) for kind in ("new", "commit", "old", "gone")}
    for temporary in tags["new"].values():
        blobs.delete(work.http, f"{work.name}:{temporary}")
    if tags["commit"]:
        for tag, temporary in tags["old"].items():
            if tag not in held or held[tag] != held[temporary]:
                blobs.copy(work.http, f"{work.name}:{temporary}", f"{work.name}:{tag}")
        for tag, temporary in tags["gone"].items():
            if tag in held and held[tag] == held[temporary]:
                blobs.delete(work.http, f"{work.name}:{tag}")
    for kind in ("commit", "old", "gone"):
        for temporary in tags[kind].values():
            blobs.delete(work.http, f"{work.name}:{temporary}")
