"""Every kernel gives libggml's bytes: every type, with and without importance, every instruction set there is here."""

from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit import kernels
from toolkit.kernels.test_vectors import hard_rows, importance_for

KINDS = list(kernels.TYPES)
NAMES = [name for name, _, _ in kernels.TYPES.values()]
FAMILIES = len(hard_rows(0, 256))


def compare(
    library: kernels.Library,
    level: int,
    kind: int,
    rows: kernels.Rows,
    importance: kernels.Floats | None,
    shift: int = 0,
) -> int:
    """Quantize at odd addresses, with guards on both splits; returns how many blocks libggml was asked for."""
    _, weights, size = kernels.TYPES[kind]
    expected = np.empty(rows.size // weights * size, np.uint8)
    kernels.quantize_with_ggml(kind, cast(kernels.Rows, np.ascontiguousarray(rows)), expected, importance)
    source = np.zeros(rows.nbytes + 64, np.uint8)
    source[shift : shift + rows.nbytes] = rows.reshape(-1).view(np.uint8)
    moved = source[shift : shift + rows.nbytes].view(rows.dtype).reshape(rows.shape)
    room = np.full(expected.size + 64, 0xA5, np.uint8)
    sent = kernels.quantize(library, level, kind, moved, room[shift : shift + expected.size], importance)
    wrong = np.flatnonzero((expected != room[shift : shift + expected.size]).reshape(-1, size).any(1))
    assert not wrong.size, f"{kernels.TYPES[kind][0]} level {level}: {wrong.size} blocks, the first {wrong[0]}"
    assert (room[:shift] == 0xA5).all() and (room[shift + expected.size :] == 0xA5).all()
    return sent


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "imatrix"])
def test_hard_rows(library: kernels.Library, kind: int, weighted: bool) -> None:
    rows = hard_rows(1, 768)
    importance = importance_for(1, 768) if weighted else None
    for level in range(library.level + 1):
        compare(library, level, kind, rows, importance)
        compare(library, level, kind, kernels.to_bf16(rows), importance)


@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_ordinary_weights_never_need_libggml(library: kernels.Library, kind: int) -> None:
    rows = (np.random.default_rng(0).standard_t(5, (40, 1024)) * 0.02).astype(np.float32)
    for importance in (None, np.abs(rows[0]) + np.float32(0.001)):
        for level in range(library.level + 1):
            assert compare(library, level, kind, rows, importance) == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=NAMES)
def test_many_rows_of_one_kind(library: kernels.Library, kind: int) -> None:
    """Uniform weights: in one block of a hundred Q3_K's descent takes all its rounds."""
    rows = np.random.default_rng(0).uniform(-1, 1, (300, 1024)).astype(np.float32)
    for importance in (None, importance_for(2, 1024)):
        compare(library, library.level, kind, rows, importance)


@pytest.mark.parametrize(("kind", "seed"), [(10, 37), (12, 43)], ids=["Q2_K", "Q4_K"])
def test_scales_that_take_all_five_rounds(library: kernels.Library, kind: int, seed: int) -> None:
    """With importance scales move at most five times over; one block in 2,000 (Q2_K) or 10,000 of these needs all."""
    random = np.random.default_rng(seed)
    importance = np.repeat(np.float32(10) ** random.uniform(-3, 0, 64).astype(np.float32), 16)
    values = random.standard_normal((64, 1024), np.float32)
    rows = values * np.repeat(np.float32(10) ** random.uniform(-1, 0, (64, 64)).astype(np.float32), 16, axis=1)
    for level in range(library.level + 1):
        compare(library, level, kind, rows, importance)


@settings(max_examples=tries(60), deadline=None)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32 - 1),
    blocks=st.integers(1, 9),
    picked=st.lists(st.integers(0, FAMILIES - 1), min_size=1, max_size=45),
    scale=st.floats(-30, 30),
    weighted=st.booleans(),
    narrow=st.booleans(),
    shift=st.integers(0, 9),
    level=st.integers(0, 2),
)
def test_any_shape_at_any_address(
    library: kernels.Library, kind: int, seed: int, blocks: int, picked: list[int], scale: float, weighted: bool,
    narrow: bool, shift: int, level: int,
) -> None:  # fmt: skip
    columns = blocks * kernels.TYPES[kind][1]
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rows = hard_rows(seed, columns)[picked] * np.float32(10**scale)
    given: kernels.Rows = kernels.to_bf16(rows) if narrow else rows
    importance = importance_for(seed, columns) if weighted else None
    compare(library, min(level, library.level), kind, given, importance, shift)


@settings(max_examples=tries(60), deadline=None)
@given(kind=st.sampled_from(KINDS), data=st.data(), weighted=st.booleans())
def test_any_bits(library: kernels.Library, kind: int, data: st.DataObject, weighted: bool) -> None:
    """Hypothesis chooses the floats themselves, few of them so that they meet in a block."""
    columns = kernels.TYPES[kind][1]
    bits = data.draw(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=6))
    chosen = np.array(bits, np.uint32).view(np.float32)
    places = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1))).integers(0, len(chosen), (3, columns))
    for level in range(library.level + 1):
        compare(library, level, kind, chosen[places], importance_for(0, columns) if weighted else None)


def test_what_does_not_fit_is_refused(library: kernels.Library) -> None:
    rows, room = np.zeros((2, 256), np.float32), np.zeros(288, np.uint8)
    kernels.quantize(library, library.level, 12, rows, room)
    bads: list[Any] = [rows[:, :200], rows.astype(np.float64), rows[:, ::2], rows[:1]]
    for bad in bads:
        with pytest.raises(ValueError, match="Q4_K"):
            kernels.quantize(library, library.level, 12, bad, room)
    with pytest.raises(ValueError, match="Q4_K"):
        kernels.quantize(library, library.level, 12, rows, room, np.ones(255, np.float32))
