"""Many prompts answered together in transformers: each as by a plain pass over all ids for each token."""

import random
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support import families, models
from tests.support.properties import first_fast
from toolkit.evaluate import batched_answers
from toolkit.evaluate.batched_answers import GROUPED, answer_together, use_grouped_attention

FAMILIES = first_fast(["llama", "gemma3", "qwen3.5"])  # gemma3 has a sliding window of 24 tokens; qwen3.5 a state
TOKENS = 24


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("answers")
    families.save(folder, request.param)
    return models.load(folder).eval()


def prompts() -> list[list[int]]:
    draw = random.Random(3)
    return [[draw.randrange(5, 250) for _ in range(count)] for count in (1, 40, 7, 23, 2, 31, 12)]


def plain(model: Any, prompt: list[int]) -> list[int]:
    """The greedy tokens, without a cache, padding or a batch."""
    answer: list[int] = []
    while len(answer) < TOKENS:
        with torch.inference_mode():
            answer.append(int(model(torch.tensor([prompt + answer]), use_cache=False).logits[0, -1].argmax()))
    return answer


def until(answer: list[int], ends: tuple[int, ...]) -> tuple[list[int], bool]:
    """The part of an answer before the first token that ends it, and whether there is one."""
    at = next((index for index, token in enumerate(answer) if token in ends), None)
    return (answer, False) if at is None else (answer[:at], True)


def together(model: Any, ends: tuple[int, ...]) -> list[tuple[int, list[int], bool]]:
    return list(answer_together(model, prompts(), TOKENS, ends, lambda *_: False, nullcontext))


@pytest.fixture(scope="module")
def free(model: Any) -> list[list[int]]:
    """The answers that no token ends."""
    return [plain(model, prompt) for prompt in prompts()]


@pytest.fixture(scope="module")
def ends(free: list[list[int]]) -> tuple[int, ...]:
    """Tokens that end some answers at different places, and one not at all."""
    return free[0][3], free[2][15], free[3][9]


@pytest.mark.parametrize("tokens", [2048, 14])
def test_answers_that_end_at_different_times_are_those_of_each_alone(
    model: Any, free: list[list[int]], ends: tuple[int, ...], tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(batched_answers, "TOKENS_CPU", tokens)  # with 14, two positions in a pass: some all padding
    monkeypatch.setattr(batched_answers, "AHEAD", 5)
    found = together(model, ends)
    assert [(answer, ended) for _, answer, ended in sorted(found)] == [until(answer, ends) for answer in free]
    lengths = [len(answer) for _, answer, _ in found]
    assert len(set(lengths)) > 2 and lengths == sorted(lengths)  # each comes when it ends


@pytest.mark.slow
def test_grouped_attention_answers_as_that_of_transformers(model: Any, ends: tuple[int, ...]) -> None:
    former = model.config.get_text_config()._attn_implementation
    plainly = together(model, ends)
    use_grouped_attention(model)
    try:
        assert model.config.get_text_config()._attn_implementation == (GROUPED if former == "sdpa" else former)
        assert together(model, ends) == plainly
    finally:
        model.set_attn_implementation(former)


def test_a_model_that_attends_in_its_own_way_keeps_it(tmp_path: Path) -> None:
    families.save(tmp_path, "llama")
    model = models.load(tmp_path)
    model.set_attn_implementation("eager")
    use_grouped_attention(model)
    assert model.config.get_text_config()._attn_implementation == "eager"


def test_an_ended_answer_is_not_computed_further(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = []

    def counted(model: Any, ids: Any, *rest: Any) -> Any:
        rows.append(len(ids))
        return following(model, ids, *rest)

    following = batched_answers._next
    monkeypatch.setattr(batched_answers, "_next", counted)
    limits = iter(range(1, 1000))
    found = list(
        answer_together(model, prompts(), TOKENS, (), lambda _, ids: len(ids) > 5 and next(limits) < 4, nullcontext)
    )
    assert [len(answer) for _, answer, _ in found] == [6] * 3 + [TOKENS] * 4
    assert rows == [7] * 6 + [4] * (TOKENS - 6)
