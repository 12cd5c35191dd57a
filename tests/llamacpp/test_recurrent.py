"""A model that keeps a state from token to token, in llama.cpp: several sequences at once, and one after another."""

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support import asked, families, models
from toolkit import llamacpp
from toolkit.evaluate.systems import Asked
from toolkit.export import export
from toolkit.formats.gguf_reader import open_gguf
from toolkit.llamacpp import batched, recurrent, together
from toolkit.model.families import family_of
from toolkit.prompt.format import Part, Prompt


@pytest.fixture(scope="module")
def twins(tmp_path_factory: pytest.TempPathFactory) -> Iterator[asked.Twins]:
    with asked.twins(tmp_path_factory.mktemp("twins"), "qwen3.5") as made:
        yield made


def texts(seed: int) -> list[list[int]]:
    """Texts of many lengths; some begin alike, one is longer than a pass."""
    draw = random.Random(seed)
    found = [[draw.randrange(5, 480) for _ in range(draw.randrange(2, 90))] for _ in range(5)]
    return [*found, found[0] + [7] * 70, found[0][:1], [draw.randrange(5, 480) for _ in range(300)]]


@pytest.mark.slow
def test_sequences_in_one_pass_do_not_see_each_other(twins: asked.Twins) -> None:
    llm, some = twins.in_llamacpp.llm, texts(0)
    for group in together.groups([(ids, len(ids) // 2) for ids in some], 3):
        for (ids, first), found in zip(group, together.logits_together(llm, group), strict=True):
            np.testing.assert_allclose(found, llamacpp.logits(llm, ids, first), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_many_at_once_answer_as_one_at_a_time(twins: asked.Twins) -> None:
    """In either system: llama.cpp gives a place whose answer has ended to the next, transformers pads on the left."""
    from peft import LoraConfig, get_peft_model

    prompts = [Prompt((Part(f"{'water and ' * n}{n}", True),)) for n in range(9)]
    adapted = get_peft_model(models.load(twins.folder), LoraConfig(r=2, target_modules=["out_proj"])).eval()
    systems: list[Asked] = [twins.in_llamacpp, replace(twins.in_transformers, model=adapted)]
    for system in systems:
        found = list(system.answers(prompts, 12, ()))
        assert found == [next(iter(system.answers([prompt], 12, ()))) for prompt in prompts]
        assert len({answer.text for answer in found}) > 3


def test_an_answer_does_not_depend_on_the_question_before(twins: asked.Twins) -> None:
    """llama-cpp-python keeps the beginning that two prompts share where the memory can be cut back."""
    llm, ids = twins.in_llamacpp.llm, texts(1)[0]

    def answer(prompt: list[int]) -> str:
        return "".join(llamacpp.generate(llm, prompt, 8, (), llamacpp.Sampling()))

    longer = [*ids, 9, 9, 9]
    first, second = answer(ids), answer(longer)
    assert (answer(longer), answer(ids), answer(ids)) == (second, first, first)


def header(**values: Any) -> dict[str, Any]:
    sizes = {"inner_size": 6144, "state_size": 128, "conv_kernel": 4, "group_count": 16}
    stated = {f"qwen35.ssm.{key}": value for key, value in sizes.items()}
    return {"general.architecture": "qwen35", "qwen35.block_count": 64, **stated, **values}


def test_the_bytes_of_a_state(tmp_path: Path) -> None:
    """By the header: 27B has 48 layers with 48 heads of 128 × 128, and three tokens of the convolution."""
    each = 4 * (48 * 128 * 128 + 3 * (6144 + 2 * 16 * 128))
    assert recurrent.state_bytes(header()) == 48 * each
    assert recurrent.state_bytes(header(**{"qwen35.full_attention_interval": 2})) == 32 * each
    assert recurrent.state_bytes(header(**{"qwen35.attention.recurrent_layers": [True, False]})) == each
    assert recurrent.state_bytes({"general.architecture": "llama", "llama.block_count": 2}) == 0
    base = families.save(tmp_path / "base", "qwen3.5")
    export(base, None, {"F16": tmp_path / "a.gguf"}, models.TEMPLATE, "small")
    model = family_of(base)[1]
    assert model.delta is not None
    own = recurrent.state_bytes(open_gguf(tmp_path / "a.gguf").metadata)
    assert own == 4 * model.recurrent * model.delta.state() > 0


def test_states_bound_how_many_are_at_once(twins: asked.Twins, monkeypatch: pytest.MonkeyPatch) -> None:
    path = twins.in_llamacpp.path
    each = recurrent.state_bytes(open_gguf(path).metadata)
    assert recurrent.sequences(path, 64) == 64 and batched.at_once(path, 64) == batched.MOST
    monkeypatch.setattr(recurrent, "STATES", 3 * each)
    monkeypatch.setattr(batched, "CACHE", 3 * each)
    assert recurrent.sequences(path, 64) == 3 and batched.at_once(path, 1) == 2
