"""Base, trained model and GGUF files are asked alike, many questions at once, and answer as one at a time."""

import numpy as np
import pytest

from tests.support import scored_models
from toolkit import llamacpp
from toolkit.evaluate import transformers_system
from toolkit.evaluate.bench import Bench
from toolkit.evaluate.systems import Answer, System, answer_of, cut_at, in_order
from toolkit.prompt.format import Prompt
from toolkit.prompt.held_out import read_held_out
from toolkit.prompt.renderings import render

TOKENS = 24


def prompts(bench: Bench) -> list[Prompt]:
    words = [question for question, _ in scored_models.ROWS] * 3
    return [render(bench.form, f"{question} {'and ' * index}") for index, question in enumerate(words)]


def named(bench: Bench, name: str) -> System:
    return next(system for system in bench.systems if system.name == name)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["F32", "trained", "base"])
def test_many_at_once_answer_as_one_at_a_time(bench: Bench, name: str) -> None:
    with bench.opened(named(bench, name), 256) as asked:
        together = list(asked.answers(prompts(bench), TOKENS, ()))
        alone = [next(iter(asked.answers([prompt], TOKENS, ()))) for prompt in prompts(bench)]
    assert len(together) == 18 and len({answer.text for answer in together}) > 3
    assert together == alone


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "Q8_0"])
def test_an_answer_goes_no_further_than_what_is_enough(
    bench: Bench, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_system, "BATCH", 5)  # numbers go on from batch to batch
    with bench.opened(named(bench, name), 256) as asked:
        free = list(asked.answers(prompts(bench), TOKENS, ()))
        found = list(asked.answers(prompts(bench), TOKENS, (), lambda number, text: number % 3 == 1 and len(text) > 3))
    assert len(found) == 18
    for number, (whole, part) in enumerate(zip(free, found, strict=True)):
        if number % 3 == 1 and part != whole:
            assert whole.text.startswith(part.text.rstrip("\ufffd")) and len(part.text) > 3 and not part.ended
            assert part.tokens < whole.tokens
        else:
            assert part == whole
    assert sum(part != whole for part, whole in zip(found, free, strict=True)) >= 3


@pytest.mark.slow
def test_the_exact_file_answers_as_the_trained_model_and_not_as_the_base(bench: Bench) -> None:
    found = {}
    for name in ("base", "trained", "F32"):
        with bench.opened(named(bench, name), 256) as asked:
            found[name] = list(asked.answers(prompts(bench), TOKENS, ()))
    assert found["F32"] == found["trained"] and found["base"] != found["trained"]


def test_a_file_answers_as_llama_cpp_alone_does(bench: Bench) -> None:
    system = named(bench, "F16")
    assert system.path is not None
    with bench.opened(system, 256) as asked:
        found = [answer.text for answer in asked.answers(prompts(bench)[:4], TOKENS, ())]
    equal = 0
    with llamacpp.opened(system.path, 256) as llm:
        for text, prompt in zip(found, prompts(bench), strict=False):
            ids = llamacpp.tokenize(llm, prompt)
            alone = "".join(llamacpp.generate(llm, ids, TOKENS, (), llamacpp.Sampling()))
            begin = text.partition("\ufffd")[0]  # llama-cpp-python leaves out what is no whole character
            assert alone.startswith(begin)
            equal += len(begin)
    assert equal > 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["trained", "Q8_0"])
def test_an_answer_ends_at_a_stop_which_is_no_end_of_its_own(bench: Bench, name: str) -> None:
    with bench.opened(named(bench, name), 256) as asked:
        free = list(asked.answers(prompts(bench), TOKENS, ()))
        stop = next(answer.text[5:9] for answer in free if len(answer.text) > 20 and answer.text[5:9].isprintable())
        stopped = list(asked.answers(prompts(bench), TOKENS, (stop,)))
    assert any(stop in answer.text for answer in free)
    for before, after in zip(free, stopped, strict=True):
        assert after.text == before.text.partition(stop)[0]
        assert after.tokens <= before.tokens and not (after.ended and stop in before.text)


@pytest.mark.slow
def test_likelihoods_of_the_exact_file_are_those_of_the_trained_model(bench: Bench, made: scored_models.World) -> None:
    records = read_held_out(made.folder.split_file("test"), bench.form, bench.tokenizer)
    pairs = [(record.ids[: record.start], record.ids[record.start :]) for record in records]
    scores = {}
    for name in ("base", "trained", "F32"):
        with bench.opened(named(bench, name), 256) as asked:
            scores[name] = np.array([score.logprob for score in asked.scores(pairs)])
    assert scores["F32"] == pytest.approx(scores["trained"], abs=1e-3)
    assert abs(scores["base"] - scores["trained"]).max() > 1


def test_a_greedy_continuation_is_known_as_one(bench: Bench) -> None:
    system = named(bench, "Q8_0")
    assert system.path is not None
    before = bench.tokenizer.prompt_ids(prompts(bench)[0])
    with llamacpp.opened(system.path, 256) as llm:
        first = int(llamacpp.logits(llm, before, len(before) - 1)[0].argmax())
        second = int(llamacpp.logits(llm, [*before, first], len(before))[0].argmax())
    pairs = [(before, [first, second]), (before, [first, second - 1]), (before, [first - 1, second])]
    with bench.opened(system, 256) as asked:
        assert [score.greedy for score in asked.scores(pairs)] == [True, False, False]


def test_what_was_begun_is_closed_before_the_model(bench: Bench) -> None:
    with bench.opened(named(bench, "Q8_0"), 256) as asked:
        answers = asked.answers(prompts(bench), TOKENS, ())
        scores = asked.scores([([1, 2], [3]), ([4], [5, 6])])
        next(iter(answers)), next(iter(scores))
    assert not list(answers) and not list(scores)


def test_answers_that_come_early_wait() -> None:
    one, two, three = (Answer(text, 1, True) for text in "abc")
    assert list(in_order([(2, three), (0, one), (1, two)])) == [one, two, three]


def test_a_stop_is_found_in_the_last_tokens_and_in_all_of_them(bench: Bench) -> None:
    ids = bench.tokenizer.encode("water helps ### Input: rest")
    assert cut_at(bench.tokenizer, ids, ("### Input:",), whole=True) == len("water helps ")
    assert cut_at(bench.tokenizer, ids, ("### Output:",), whole=True) is None
    assert answer_of(bench.tokenizer, ids, True, ("### Input:",)) == Answer("water helps ", len(ids), False)


def test_a_machine_without_room_skips_base_and_trained_model_in_words(
    made: scored_models.World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("toolkit.core.hardware.available_memory", lambda: 1_000_000)
    found = Bench(made.config, made.folder, made.base)
    reasons = [found.skipped(system) for system in found.systems]
    assert reasons[0] == reasons[1] and "of memory, and 1.0 MB are free" in reasons[0] and reasons[2:] == ["", "", ""]


def test_a_base_that_is_not_kept_is_skipped_in_words(made: scored_models.World) -> None:
    found = Bench(made.config, made.folder, made.base, kept=False)
    assert "piece by piece" in found.skipped(found.systems[0])
