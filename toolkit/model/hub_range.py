"""Bytes of a hub's file from one place to another: a connection that breaks is continued where it broke."""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from toolkit.core.errors import MISSING, ToolkitError, explain
from toolkit.core.network import hub_proxy

ATTEMPTS = 6  # without a byte between them
WAIT = 1.0  # seconds before the second attempt; twice as many before each further one
LONGEST_WAIT = 30.0
BUSY = (408, 425, 429, 500, 502, 503, 504)


@dataclass(frozen=True)
class Shard:
    """One file of the base that is not on this machine: its bytes, and the hash that the hub states.

    `digest` is a SHA-256 (of a file in LFS), or git's blob id where `git` says so (of a small file).
    """

    name: str
    size: int
    digest: str
    git: bool = False

    def hasher(self) -> Any:
        """Return what the file's bytes are to be fed to."""
        return hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False) if self.git else hashlib.sha256()


@dataclass(frozen=True)
class HubShards:
    """A base whose weights stay on the hub; `folder` is read like any base's, up to the values of its tensors."""

    label: str
    commit: str
    folder: Path
    shards: dict[str, Shard]

    @property
    def missing(self) -> int:
        """The bytes that a download of the whole base would still fetch."""
        return sum(shard.size for shard in self.shards.values())


def fetch(
    source: HubShards, shard: Shard, start: int, end: int, take: Callable[[bytes], Any], *, attempts: int = ATTEMPTS
) -> None:
    """Fetch the bytes from `start` to `end` of a shard; a connection that breaks is continued where it broke.

    After so many `attempts` without a byte it is given up: ToolkitError.
    """
    import httpx

    position, failed = start, 0
    while position < end:
        before, reason = position, "it sent nothing"
        try:
            for data in _stream(source, shard, position, end):
                take(data)
                position += len(data)
        except httpx.HTTPError as exc:
            response = getattr(exc, "response", None)
            if response is not None and response.status_code not in BUSY:
                raise explain(exc) or exc from None
            reason = " ".join(str(exc).split())[:160] or type(exc).__name__
        failed = 0 if position > before else failed + 1
        if failed == attempts:
            through = f" with the proxy of {proxy}" if (proxy := hub_proxy()) else ""
            raise ToolkitError(
                f"the hub stopped answering at byte {position:,} of `{shard.name}`: {reason}",
                hint=f"check the network{through}, then run the same command again: it continues with this shard",
                exit_code=MISSING,
            )
        if failed:
            time.sleep(min(LONGEST_WAIT, WAIT * 2 ** (failed - 1)))


def _stream(source: HubShards, shard: Shard, start: int, end: int) -> Iterator[bytes]:
    """Yield the bytes from `start` to `end` as they come; a server that ignores ranges sends all from the beginning.

    The hub's client would wait for ever for one that falls silent.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.utils import (  # type: ignore[attr-defined]
        build_hf_headers,
        get_session,
        hf_raise_for_status,
    )

    url = hf_hub_url(source.label, shard.name, revision=source.commit)
    headers = {**build_hf_headers(), "Range": f"bytes={start}-{end - 1}", "Accept-Encoding": "identity"}
    silence = constants.HF_HUB_DOWNLOAD_TIMEOUT
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=silence) as response:
        if response.is_error:
            response.read()
        hf_raise_for_status(response)
        skip, left = (0 if response.status_code == 206 else start), end - start
        for data in response.iter_raw():
            wanted = data[skip : skip + left]
            skip -= min(skip, len(data))
            left -= len(wanted)
            if wanted:
                yield wanted
            if not left:
                return
