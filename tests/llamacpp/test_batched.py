"""Several questions answered at once by one GGUF: each as alone, and sequences that go on stay neighbours."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support import asked
from tests.support.properties import first_fast
from toolkit.llamacpp.batched import answer_all

TOKENS = 20
LENGTHS = (3, 17, 9, 2, 12, 7, 1, 14)  # of the answers, by prompt
Found = dict[int, tuple[list[int], bool]]


@pytest.fixture(scope="module", params=first_fast(["llama", "gemma3", "qwen3.5"]))
def llm(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with asked.twins(tmp_path_factory.mktemp("batched"), request.param) as made:
        yield made.in_llamacpp.llm


def prompts() -> list[list[int]]:
    draw = random.Random(5)
    return [[draw.randrange(5, 250) for _ in range(count)] for count in (4, 40, 7, 23, 2, 31, 12, 18)]


def answers(llm: Any, count: int) -> Found:
    found = answer_all(llm, prompts(), TOKENS, count, lambda number, ids: len(ids) == LENGTHS[number])
    return {number: (ids, ended) for number, ids, ended in found}


@pytest.fixture(scope="module")
def alone(llm: Any) -> Found:
    return answers(llm, 1)


@pytest.mark.parametrize("count", [8, 3])
def test_answers_that_end_at_different_times_are_those_of_each_alone(llm: Any, alone: Found, count: int) -> None:
    assert len(alone) == 8 and [len(alone[number][0]) for number in range(8)] == list(LENGTHS)
    assert answers(llm, count) == alone


@pytest.mark.parametrize("count", [8, 3])
def test_sequences_of_a_pass_are_neighbours(llm: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """llama.cpp divides a pass where numbers of sequences are not consecutive, and reads the weights for each part."""
    import llama_cpp

    sent: list[list[int]] = []
    decode = llama_cpp.llama_decode

    def noted(context: Any, batch: Any) -> int:
        sent.append([batch.seq_id[index][0] for index in range(batch.n_tokens)])
        return int(decode(context, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", noted)
    answers(llm, count)
    numbers = {len(set(places)) for places in sent}
    assert {1, count} <= numbers
    for places in sent:
        assert places == sorted(places) and set(places) == set(range(len(set(places))))
