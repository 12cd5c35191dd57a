"""Which of very many texts may have a near copy, by MinHash (rensa): the others need no comparison."""

from collections.abc import Iterable, Sequence
from itertools import islice

import numpy as np

SLOTS = 256  # of a signature
MISSED = 0.005  # share of the pairs at the threshold itself that may be missed
LONGEST = 16  # slots of a band
AT_ONCE = 4096  # texts
SEED = 42


def slots_of_a_band(threshold: float) -> int:
    """Return how many slots must be alike, at most, so that pairs of a Jaccard of `threshold` are surely found.

    Of b bands of r slots, one is alike with probability 1 - (1 - tʳ)ᵇ.
    """
    return max(r for r in range(1, LONGEST + 1) if r == 1 or (1 - threshold**r) ** (SLOTS // r) <= MISSED)


def with_a_twin(texts: Iterable[frozenset[str]], threshold: float) -> Sequence[int]:
    """Return the numbers of the texts that agree with another one in a band; nearly all that reach the threshold do.

    Needs 4 bytes for each text and band, 128 MB for a million at 0.8.
    """
    from rensa import RMinHash

    size = slots_of_a_band(threshold)
    bands = SLOTS // size
    factors = np.random.default_rng(SEED).integers(2**63, size=size, dtype=np.uint64) | np.uint64(1)
    parts = []
    left = map(list, texts)
    while batch := list(islice(left, AT_ONCE)):
        rows = RMinHash.digest_matrix_from_token_sets(batch, SLOTS, SEED).to_rows()
        slots = np.array(rows, np.uint64)[:, : bands * size].reshape(-1, bands, size)
        parts.append(((slots * factors).sum(2) >> np.uint64(32)).astype(np.uint32))
    keys = np.concatenate(parts)
    found = np.zeros(len(keys), bool)
    for band in range(bands):
        order = np.argsort(keys[:, band], kind="stable")
        same = np.diff(keys[order, band]) == 0
        found[order[1:][same]] = True
        found[order[:-1][same]] = True
    return list(map(int, np.flatnonzero(found)))
