"""Lists that are kept on the disk behave as lists."""

import os
import tracemalloc
from array import array
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core import spool
from toolkit.core.spool import Chosen, Spool


@pytest.fixture(autouse=True, scope="module")
def _few_in_memory() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spool, "KEPT", 3)
        patch.setattr(spool, "READ", 40)
        patch.setattr(spool, "NEAR", 2)
        yield


@pytest.mark.slow
@given(st.lists(st.one_of(st.text(), st.integers(), st.dictionaries(st.text(), st.none())), max_size=30), st.data())
def test_it_holds_what_a_list_holds(items: list[object], data: st.DataObject) -> None:
    kept = Spool(items[:5])
    assert [*kept] == items[:5]
    kept.extend(items[5:])  # after it was read
    assert [*kept] == items == [*kept] and len(kept) == len(items)
    assert [kept[at] for at in range(-len(items), len(items))] == [*items, *items]
    start, end = data.draw(st.tuples(st.integers(-40, 40), st.integers(-40, 40)))
    assert kept[start:end] == items[start:end]
    with pytest.raises(IndexError):
        kept[len(items)]
    numbers = data.draw(st.lists(st.integers(0, len(items) - 1))) if items else []
    chosen = Chosen(kept, array("Q", numbers))
    assert [*chosen] == [items[number] for number in numbers] == chosen[:] and len(chosen) == len(numbers)


def test_two_readers_do_not_disturb_each_other() -> None:
    kept = Spool(range(40))
    assert [*zip(kept, kept, strict=True)] == [*zip(range(40), range(40), strict=True)]


def test_halves_of_surrogate_pairs_come_back() -> None:
    assert [*Spool(["\ud800", "é\udcff", "a", "b\udc80", "c"])] == ["\ud800", "é\udcff", "a", "b\udc80", "c"]


def test_few_large_items_are_not_kept_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "KEPT", 4096)
    items = [character * 4_000_000 for character in "abcdefghijkl"]
    tracemalloc.start()
    try:
        kept = Spool(item for item in items)
        held, _ = tracemalloc.get_traced_memory()
        assert [one[:1] + one[-1:] for one in kept] == [one[:1] * 2 for one in items]
        assert tracemalloc.get_traced_memory()[1] < 3 * 4_100_000
    finally:
        tracemalloc.stop()
    assert held < spool.WRITTEN + 1_000_000  # the first four are the list's own
    assert kept[0] is items[0] and kept[11] is not items[11] and kept[11] == items[11]


def test_one_item_is_read_without_its_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spool, "KEPT", 0)
    monkeypatch.setattr(spool, "READ", 1 << 20)
    found = Spool("x" * 1000 for _ in range(20))
    sizes: list[int] = []
    pread = os.pread

    def counted(file: int, size: int, place: int) -> bytes:
        sizes.append(size)
        return pread(file, size, place)

    monkeypatch.setattr(os, "pread", counted)
    assert found[3] == "x" * 1000 and len(sizes) == 1 and sizes[0] < 2000
    assert len([*found]) == 20 and len(sizes) == 3
