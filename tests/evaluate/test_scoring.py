"""Scores of continuations equal those of a plain pass over each, in llama.cpp and in transformers."""

import random
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import asked, models
from tests.support.properties import first_fast
from toolkit import llamacpp
from toolkit.evaluate import batched_scoring, scoring
from toolkit.evaluate.scoring import Pair
from toolkit.evaluate.systems import Asked, Score

FAMILIES = ["llama", "gemma3", "qwen3.5"]  # gemma3 has a sliding window of 24 tokens, qwen3.5 a state


@pytest.fixture(scope="module", params=first_fast(FAMILIES))
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[asked.Twins]:
    with asked.twins(tmp_path_factory.mktemp("twins"), request.param) as made:
        yield made


def pairs(seed: int = 0) -> list[Pair]:
    """Letters, texts, a beginning that all share, a long text after one token, and a pair that comes twice."""
    draw = random.Random(seed)

    def ids(count: int) -> list[int]:
        return [draw.randrange(5, 250) for _ in range(count)]

    shared, found = ids(60), []
    for _ in range(4):
        question = shared + ids(draw.randrange(5, 30))
        found += [(question, [letter]) for letter in (30, 31, 32, 33)]
    for _ in range(6):
        question = ids(draw.randrange(1, 40))
        found += [(question, ids(draw.randrange(1, 12))) for _ in range(4)]
    found.append(([7], ids(150)))
    nested = ids(9)
    found += [(shared, nested[:1]), (shared, nested[:5]), (shared, nested), (shared, nested[:5])]
    return [*found, found[0]]


def plain(logits: np.ndarray, pair: Pair) -> Score:
    """The score by the logits of all positions of a pair."""
    before, after = pair
    logs = models.log_softmax(logits[len(before) - 1 : -1])
    return Score(float(logs[range(len(after)), after].sum()), logs.argmax(-1).tolist() == after)


def compare(found: list[Score], expected: list[Score], most: float = 1e-4) -> None:
    assert [score.logprob for score in found] == pytest.approx(
        [score.logprob for score in expected], abs=most, rel=1e-6
    )
    assert [score.greedy for score in found] == [score.greedy for score in expected]


def in_transformers(twins: asked.Twins, ids: list[int]) -> np.ndarray:
    with torch.inference_mode():
        logits: np.ndarray = twins.in_transformers.model(torch.tensor([ids])).logits[0].numpy()
    return logits


def rounding(twins: asked.Twins) -> float:
    """What llama.cpp may differ by: it reads Gemma's activation from a table in float16."""
    return 2e-5 if "Llama" in type(twins.in_transformers.model).__name__ else 2e-3


def with_greedy(twins: asked.Twins, some: list[Pair]) -> list[Pair]:
    """Add continuations that are the likeliest."""
    added: list[Pair] = []
    for before, _ in some[::7]:
        after: list[int] = []
        for _ in range(3):
            after.append(int(in_transformers(twins, before + after)[-1].argmax()))
        added.append((before, after))
    return some + added


@pytest.mark.slow
def test_both_equal_one_plain_pass_for_each_pair(twins: asked.Twins) -> None:
    some = with_greedy(twins, pairs())
    expected = [plain(in_transformers(twins, before + after), (before, after)) for before, after in some]
    assert sum(score.greedy for score in expected) >= 6
    compare(list(twins.in_transformers.scores(some)), expected)
    llm = twins.in_llamacpp.llm
    own = [plain(llamacpp.logits(llm, before + after, 0), (before, after)) for before, after in some]
    found = list(twins.in_llamacpp.scores(some))
    compare(found, own, rounding(twins))
    compare(found, expected, max(1e-4, rounding(twins)))


@pytest.mark.slow
def test_small_passes_give_the_same(twins: asked.Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    """Passes that end within an item, logits in slices, batches of one: the cached beginnings are right ones."""
    some = pairs(1)[8:]
    expected = [list(twins.in_llamacpp.scores(some)), list(twins.in_transformers.scores(some))]
    monkeypatch.setattr(scoring, "TOKENS", 40)
    monkeypatch.setattr(scoring, "SEQUENCES", 3)
    monkeypatch.setattr(scoring, "OUTPUTS", 5)
    monkeypatch.setattr(batched_scoring, "TOKENS_CPU", 60)
    monkeypatch.setattr(batched_scoring, "POSITIONS", 8)
    monkeypatch.setattr(batched_scoring, "AHEAD", 5)
    compare(list(twins.in_llamacpp.scores(some)), expected[0], rounding(twins))
    name = type(twins.in_transformers.model).__name__
    rounds = 1e-4 if "Qwen3_5" in name else 2e-5  # its chunks of 64 tokens begin at other tokens
    compare(list(twins.in_transformers.scores(some)), expected[1], rounds)


@pytest.mark.slow
def test_a_continuation_that_ends_is_not_computed_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 40, 4, 21 and 5 tokens behind 3, all but the last are read, 8 positions a pass at most."""
    monkeypatch.setattr(batched_scoring, "POSITIONS", 8)
    some = [([7 + count, 8, 9], [20 + index % 200 for index in range(count)]) for count in (40, 4, 21, 5)]
    read: list[tuple[int, ...]] = []
    with asked.twins(tmp_path) as made:
        model = made.in_transformers.model
        expected = list(made.in_llamacpp.scores(some))
        hook = model.register_forward_pre_hook(
            lambda _, __, given: read.append(tuple(given["input_ids"].shape)), with_kwargs=True
        )
        found = list(made.in_transformers.scores(some))
        hook.remove()
    compare(found, expected)
    assert read == [(4, 3), (4, 2), (4, 2), *[(2, 4)] * 4, *[(1, 8)] * 2, (1, 3)]


def test_what_pairs_share_is_evaluated_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Four letters after one question cost the question; the beginning of the next question is in the cache."""
    import llama_cpp

    sent: list[int] = []
    decode = llama_cpp.llama_decode

    def counted(context: object, batch: llama_cpp.llama_batch) -> int:
        sent.append(batch.n_tokens)
        return int(decode(context, batch))

    monkeypatch.setattr(llama_cpp, "llama_decode", counted)
    monkeypatch.setattr(scoring, "SEQUENCES", 1)  # a pass for each question
    begin, questions = list(range(10, 110)), [[200 + number] * 10 for number in range(5)]
    some = [(begin + question, [letter]) for question in questions for letter in (30, 31, 32, 33)]
    with asked.twins(tmp_path) as made:
        sent.clear()
        list(made.in_llamacpp.scores(some))
    assert sent == [110, 10, 10, 10, 10]


@pytest.mark.slow
def test_scores_come_while_others_wait(tmp_path: Path) -> None:
    """An evaluation that is interrupted keeps the first ones; a scorer that is closed leaves nothing behind."""
    some = pairs()
    with asked.twins(tmp_path) as made:
        systems: list[Asked] = [made.in_llamacpp, made.in_transformers]
        for system in systems:
            whole = list(system.scores(some))
            half = system.scores(some)
            first = [next(half) for _ in range(3)]
            half.close()  # type: ignore[attr-defined]
            compare(first, whole[:3], 1e-9)
            assert list(system.scores([])) == []
        ids = llamacpp.tokenize(made.in_llamacpp.llm, "What is a fever?")
        before = llamacpp.logits(made.in_llamacpp.llm, ids, 0)
        list(made.in_llamacpp.scores(some))
        assert np.array_equal(before, llamacpp.logits(made.in_llamacpp.llm, ids, 0))


def test_no_continuation_is_certain(tmp_path: Path) -> None:
    with asked.twins(tmp_path) as made:
        systems: list[Asked] = [made.in_llamacpp, made.in_transformers]
        for system in systems:
            found = list(system.scores([([5, 6], []), ([5, 6], [7]), ([5], [])]))
            assert [found[0], found[2]] == [Score(0.0, True)] * 2
            assert found[1].logprob < 0
