"""What comes back of training answers from their first words."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as some

from tests.support import scored_models
from toolkit.core.errors import ToolkitError
from toolkit.evaluate import evaluate
from toolkit.evaluate.copied import LEARNED
from toolkit.evaluate.evaluation import read_evaluation
from toolkit.evaluate.journal import journal
from toolkit.evaluate.memorised import (
    FIRST,
    TOKENS,
    continue_rows,
    differs,
    memorised,
    read_beginnings,
    room_for,
    words_in_a_row,
)
from toolkit.evaluate.preview import foreseen
from toolkit.evaluate.summary import evaluation_text
from toolkit.evaluate.systems import Answer, Enough, Score
from toolkit.evaluate.transformers_system import Place, TransformersSystem
from toolkit.prompt.format import Prompt, prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import load_tokenizer

LONG = (
    "See a doctor at once if the fever of a child does not fall at night, and give water: a child may not drink when "
    "rest does not help, so the water stays near and a doctor may see if rest helps."
)
EOS = "<|end_of_text|>"
OTHER = " ".join(f"word{number}" for number in range(40))
ROWS = [("When?", LONG), ("Again?", LONG), ("Short?", "Rest and water."), ("What?", OTHER)]


@dataclass
class Parrot:
    """A system that continues as a table of texts says, and counts what it was asked."""

    said: dict[str, str]
    window: int = 1000
    asked: list[str] = field(default_factory=list)

    @property
    def tokenizer(self) -> Any:
        return self

    def prompt_ids(self, prompt: Prompt) -> list[int]:
        return [ord(char) for char in prompt.text]

    def text_ids(self, text: str) -> list[int]:
        return [ord(char) for char in text]

    def answers(
        self, prompts: Sequence[Prompt], tokens: int, stops: tuple[str, ...], enough: Enough | None = None
    ) -> Iterator[Answer]:
        for number, prompt in enumerate(prompts):
            self.asked.append(prompt.text)
            end = next((text for beginning, text in self.said.items() if prompt.text.endswith(beginning)), "")
            while enough and enough(number, end[:-1]):  # the shortest that is enough
                end = end[:-1]
            yield Answer(end, len(end), True)

    def scores(self, pairs: Sequence[tuple[list[int], list[int]]]) -> Iterator[Score]:
        raise NotImplementedError


def run_with(made: scored_models.World, folder: Path, listed: list[dict[str, Any]] | None = None) -> Any:
    run = scored_models.copy(made, folder)
    scored_models.write_rows(run.folder.split_file("train"), ROWS)
    if listed is not None:
        run.folder.personal.write_text("".join(json.dumps(one) + "\n" for one in listed))
    return run


def after(text: str, count: int) -> str:
    return " " + " ".join(text.split()[count:])


def test_each_answer_is_asked_once_and_short_ones_never(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path)
    of, found = read_beginnings(run.folder, prompt_format(run.config.prompt), EOS, 50)
    assert (of, [one.row for one in found]) == (2, [10, 13])
    assert found[0].prompt.text.endswith("### Response:\nSee a doctor at once if the fever")
    assert found[0].rest[:4] == ["of", "a", "child", "does"] and len(found[1].rest) == 40 - FIRST
    of, found = read_beginnings(run.folder, prompt_format(run.config.prompt), EOS, 1)
    assert of == 2 and len(found) == 1


def test_the_share_the_longest_run_and_its_row(made: scored_models.World, tmp_path: Path) -> None:
    listed = [{"file": "a.csv", "row": 13, "kind": "PHONE_NUMBER"}, {"file": "a.csv", "row": 12, "kind": "BR_CPF"}]
    run = run_with(made, tmp_path, listed)
    form = prompt_format(run.config.prompt)
    of, found = read_beginnings(run.folder, form, EOS, 50)
    parrot = Parrot({"the fever": after(LONG, FIRST)[:30], "word7": after(OTHER.upper(), FIRST).replace("WORD35", "x")})
    with journal(tmp_path / "journal") as done:
        words, _ = continue_rows(parrot, "key", found, form.stops, done, lambda: None)
        again, seconds = continue_rows(Parrot({}), "key", found, form.stops, done, lambda: None)
    assert words == again == [7, 35 - FIRST] and len(parrot.asked) == 2 and seconds >= 0
    result = memorised(of, found, {"trained": words, "base": [0, 1], "small": [None, None]})
    assert result is not None and (result["rows"], result["of"], result["words"]) == (2, 2, LEARNED)
    trained = result["systems"]["trained"]
    assert trained["share"]["mean"] == 0.5 and trained["longest"] == 27 and trained["row"] == 13
    assert trained["text"].startswith("word8 word9") and trained["text"].endswith("word34")
    assert trained["learned"] == [13] and trained["personal"] == 1
    assert result["systems"]["base"]["learned"] == [] and result["systems"]["base"]["longest"] == 1
    assert result["systems"]["small"] == {
        "rows": 0, "share": None, "longest": 0, "row": None, "text": "", "learned": [], "personal": 0,
    }  # fmt: skip
    assert memorised(0, [], {"trained": []}) is None


def test_a_model_with_few_positions_is_asked_what_fits(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path)
    form = prompt_format(run.config.prompt)
    _, found = read_beginnings(run.folder, form, EOS, 50)
    sizes = [len(one.prompt.text) for one in found]
    parrot = Parrot({}, window=min(sizes) + TOKENS)
    with journal(tmp_path / "journal") as done:
        words, _ = continue_rows(parrot, "key", found, form.stops, done, lambda: None)
    assert words.count(None) == 1 and len(parrot.asked) == 1


@pytest.mark.parametrize(
    ("text", "count"),
    [("", 0), (" of A child!", 3), ("of the child", 1), ("the of a", 0), ("of-a, child does not fall", 6)],
)
def test_words_in_a_row(text: str, count: int) -> None:
    assert words_in_a_row(text, ["of", "a", "child", "does", "not", "fall"]) == count


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", False), (" of", False), (" o", False), (" of A child!", False), (" of a chin", True), (" off", True),
        (" of a child does ###", False), (" of a child ### Inp", False), (" of a child ### Inpatients", True),
        (" of a child does not fall", False), (" of a child does not fall, ev", True), (" of a chi\ufffd", False),
    ],
)  # fmt: skip
def test_a_continuation_differs_once_no_word_can_come_back(text: str, found: bool) -> None:
    assert differs(text, ["of", "a", "child", "does", "not", "fall"], ("### Input:",)) is found


@given(
    some.text("aσΣ' 体.", max_size=12),
    some.lists(some.sampled_from(["a", "aa", "σ", "aς", "ας", "体", "aσa"]), max_size=4),
    some.sampled_from([(), ("a.",), (". a",)]),
)
def test_what_follows_the_word_that_differs_changes_nothing(text: str, rest: list[str], stops: tuple[str, ...]) -> None:
    whole = text[: min([text.index(stop) for stop in stops if stop in text], default=len(text))]
    for end in range(len(whole) + 1):
        if differs(text[:end], rest, stops):
            assert words_in_a_row(text[:end], rest) == words_in_a_row(whole, rest)


def test_rows_that_begin_alike_are_kept_apart(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path)
    other = " ".join([*LONG.split()[:FIRST], *OTHER.split()])
    scored_models.write_rows(run.folder.split_file("train"), [("When?", LONG), ("When?", other)])
    form = prompt_format(run.config.prompt)
    _, found = read_beginnings(run.folder, form, EOS, 50)
    assert found[0].prompt.text == found[1].prompt.text
    with journal(tmp_path / "journal") as done:
        words, _ = continue_rows(
            Parrot({"the fever": after(LONG, FIRST)}), "key", found, form.stops, done, lambda: None
        )
        again, _ = continue_rows(Parrot({}), "key", found, form.stops, done, lambda: None)
    assert words == again == [len(LONG.split()) - FIRST, 0]


def test_files_of_the_same_row_number_are_not_mistaken(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path, [{"file": "b.csv", "row": 13, "kind": "BR_CPF"}])
    path = run.folder.split_file("train")
    rows = [{**json.loads(line), "file": "a.csv"} for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert not [
        one for one in read_beginnings(run.folder, prompt_format(run.config.prompt), EOS, 50)[1] if one.personal
    ]
    run.folder.personal.write_text('{"file": "a.csv", "row": 13}\n')
    assert [
        one.row for one in read_beginnings(run.folder, prompt_format(run.config.prompt), EOS, 50)[1] if one.personal
    ] == [13]
    run.folder.personal.write_text("{\n")
    with pytest.raises(ToolkitError, match="is damaged"):
        read_beginnings(run.folder, prompt_format(run.config.prompt), EOS, 50)


@pytest.mark.slow
def test_a_model_that_learned_a_row_by_heart_gives_it_back(made: scored_models.World, tmp_path: Path) -> None:
    """A real model: it is trained on one row until it knows it, and shows that; of the other it knows nothing."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    run = run_with(made, tmp_path)
    form = prompt_format(run.config.prompt)
    tokenizer = load_tokenizer(run.base.folder, form)
    _, found = read_beginnings(run.folder, form, EOS, 50)
    plain = AutoModelForCausalLM.from_pretrained(run.base.folder, dtype=torch.float32)
    model = get_peft_model(plain, LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))
    prompt = found[0].prompt
    ids = torch.tensor([tokenizer.prompt_ids(prompt) + tokenizer.encode(found[0].text)])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(60):
        loss = model(ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.eval()
    system = TransformersSystem(
        model, True, tokenizer, (tokenizer.eos,), room_for(found, tokenizer), Place("cpu", "float32")
    )
    with journal(tmp_path / "journal") as done:
        words, _ = continue_rows(system, "key", found, form.stops, done, lambda: None)
    assert words[0] is not None and words[0] >= LEARNED and words[1] is not None and words[1] < 5


@pytest.mark.slow
def test_an_evaluation_says_it(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path)
    values = {"questions": 2, "answer_tokens": 4, "systems": ["trained", "Q8_0"]}
    config = run.config.model_copy(update={"evaluate": run.config.evaluate.model_copy(update=values)})
    assert foreseen(config, run.folder, run.base, kept=True)["items"] == 2 * (2 * 2 + 2)
    outcome = evaluate(config, run.folder, run.base, run.manifest())
    found = read_evaluation(run.folder)["memorised"]
    assert [*found["systems"]] == ["trained", "Q8_0"] and found["rows"] == found["of"] == 2
    assert outcome.figures["memorised"] == found
    assert "training answers of which 20 words or more come back after their first 8 words: trained 0 of 2" in (
        " ".join(evaluation_text(outcome.figures).split())
    )


def test_every_answer_of_a_chat_is_asked_for_behind_its_turns(made: scored_models.World, tmp_path: Path) -> None:
    run = run_with(made, tmp_path)
    chat = {"row": 20, "instruction": "Explain:", "history": [["When?", LONG], ["Why?", "Rest."]],
            "input": "What?", "output": OTHER, "truncated": False}  # fmt: skip
    run.folder.split_file("train").write_text(json.dumps(chat) + "\n")
    form = prompt_format(run.config.prompt)
    of, found = read_beginnings(run.folder, form, EOS, 50)
    assert of == 2 and [one.row for one in found] == [20, 20]
    earlier = [("When?", LONG), ("Why?", "Rest.")]
    assert found[0].prompt.text == render(form, "When?", "Explain:").text + " ".join(LONG.split()[:FIRST])
    assert found[1].prompt.text == (
        render(form, "What?", "Explain:", earlier, EOS).text + " ".join(OTHER.split()[:FIRST])
    )
