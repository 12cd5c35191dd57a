"""Records of several turns, once they are read: duplicates, groups, the split, the length, personal data."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.core.config import Config
from toolkit.core.config_file import build
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.bounds import TokenBound
from toolkit.prepare.clean import Record, normalise
from toolkit.prepare.columns import Columns
from toolkit.prepare.fit import NO_ROOM, TOO_LONG, fit
from toolkit.prepare.groups import question_shown, with_groups
from toolkit.prepare.personal import Personal, looker
from toolkit.prepare.split import drop_duplicates, grouped_split
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.renderings import Turn, render
from toolkit.prompt.tokenizer import Tokenizer

CHAT = Columns("messages", "messages", None, None, chat=("messages",))


def chat(number: int, *turns: Turn, instruction: str = "Explain:") -> Record:
    *earlier, (question, answer) = turns
    first = turns[0][0]
    return Record(str(number), number, number, instruction, question, answer, normalise(first), history=tuple(earlier))


def test_chats_with_other_earlier_turns_are_no_duplicates() -> None:
    one, other = chat(1, ("a", "b"), ("c", "d")), chat(2, ("a", "x"), ("c", "d"))
    kept, dropped = drop_duplicates([one, other, chat(3, ("a", "b"), ("c", "d")), chat(4, ("c", "d"))])
    assert [*kept] == [one, other, chat(4, ("c", "d"))] and dropped == 1


def test_chats_that_begin_with_one_question_stay_in_one_split() -> None:
    records = [
        chat(number, (f"What is {number % 9}?", "x"), (f"And number {number}?", "y"), *[("More?", "z")] * (number % 2))
        for number in range(60)
    ]
    splits = grouped_split(with_groups(records, "Explain:"), DataSettings())
    firsts = [{record.first_question for record in some} for some in splits.values()]
    assert all(firsts) and sum(map(len, firsts)) == 9
    assert {question_shown(record) for record in records} == {f"What is {number}?" for number in range(9)}


def test_an_instruction_of_its_own_joins_the_first_question_in_the_name_of_a_group() -> None:
    records = [chat(number, (f"q{number % 2}", "x"), ("r", "y"), instruction=f"Be {number}") for number in range(4)]
    assert [one.normalised for one in with_groups(records, "Explain:")] == ["be 0 q0", "be 1 q1", "be 2 q0", "be 3 q1"]


def length(record: Record, form: PromptFormat, tokenizer: Tokenizer) -> int:
    prompt = render(form, record.question, record.instruction, record.history, tokenizer.eos_text)
    return len(tokenizer.record_ids(prompt, record.answer, cut=record.truncated)[0])


@settings(max_examples=tries(100))
@given(
    turns=st.lists(st.tuples(st.text(min_size=1), st.text("abc é水 ", min_size=1).map(str.strip).filter(bool)),
                   min_size=1, max_size=5),
    limit=st.integers(100, 600),
)  # fmt: skip
def test_a_chat_is_cut_behind_the_last_turn_that_fits(tokenizer: Tokenizer, turns: list[Turn], limit: int) -> None:
    form, config, record = prompt_format(Config().prompt), build({}, [f"train.max_length={limit}"]), chat(1, *turns)
    kept, rejected = fit([record], form, TokenBound(tokenizer), config)
    whole = length(record, form, tokenizer)
    if whole <= limit:
        assert kept == [record]
        return
    if not kept:
        assert rejected[0].reason == NO_ROOM and rejected[0].tokens == whole
        first = render(form, turns[0][0], record.instruction)
        assert len(tokenizer.prompt_ids(first)) + 2 > limit or not tokenizer.shorten(first, turns[0][1], limit)
        return
    cut = kept[0]
    assert length(cut, form, tokenizer) <= limit and cut.tokens == whole
    said = [*cut.history, (cut.question, cut.answer)]
    assert cut.left_out == len(turns) - len(said)
    if cut.truncated:  # not even the first turn fits
        assert said == [(turns[0][0], cut.answer)] and turns[0][1].startswith(cut.answer) != (turns[0][1] == cut.answer)
    else:
        assert said == turns[: len(said)]
        *history, (question, answer) = turns[: len(said) + 1]
        assert (
            length(replace(record, history=tuple(history), question=question, answer=answer), form, tokenizer) > limit
        )


@pytest.mark.slow
def test_a_chat_of_500_turns_keeps_the_first_that_fit(tokenizer: Tokenizer) -> None:
    turns = [(f"Question {number}?", f"Answer {number}.") for number in range(500)]
    form = prompt_format(Config().prompt)
    (kept,), _ = fit([chat(1, *turns)], form, TokenBound(tokenizer), build({}, ["train.max_length=2048"]))
    assert [*kept.history, (kept.question, kept.answer)] == turns[: 500 - kept.left_out] and not kept.truncated
    assert 0 < kept.left_out < 499 and length(kept, form, tokenizer) <= 2048
    config = build({}, ["train.max_length=2048", "data.on_too_long=drop"])
    none, (dropped,) = fit([chat(1, *turns)], form, TokenBound(tokenizer), config)
    assert not none and dropped.reason == TOO_LONG


def test_personal_data_in_earlier_turns_is_found_and_masked_the_same_in_all() -> None:
    pytest.importorskip("presidio_analyzer")
    said = chat(
        1, ("My CPF is 529.982.247-25, who treats me?", "Write to ana@example.com."), ("Is 52998224725 in?", "Yes.")
    )
    config = build({}, ["data.personal=mask"])
    found = Personal("mask")
    masked = looker(found, CHAT, "x.jsonl", config)(said)
    assert isinstance(masked, Record)
    assert masked.history == (("My CPF is <BR_CPF_1>, who treats me?", "Write to <EMAIL_ADDRESS_1>."),)
    assert (masked.question, masked.answer) == ("Is <BR_CPF_1> in?", "Yes.")
    assert masked.normalised == normalise("My CPF is <BR_CPF_1>, who treats me?")
    assert [(one.column, one.kind) for one in found.findings] == [
        ("messages", "BR_CPF"),
        ("messages", "EMAIL_ADDRESS"),
        ("messages", "BR_CPF"),
    ]
    later = chat(1, ("Who treats me?", "We do."), ("Is 529.982.247-25 in, my CPF?", "Yes."))
    changed = looker(found, CHAT, "x.jsonl", config)(later)
    assert (
        isinstance(changed, Record)
        and changed.normalised == later.normalised
        and changed == replace(later, question="Is <BR_CPF_1> in, my CPF?")
    )


@pytest.mark.parametrize("column", [None, "rules"])
def test_what_is_found_in_a_system_message_names_its_column(column: str | None) -> None:
    pytest.importorskip("presidio_analyzer")
    columns = replace(CHAT, instruction=column)
    found = Personal("warn")
    said = chat(1, ("Who treats me?", "We do."), instruction="You answer for ana@example.com.")
    assert looker(found, columns, "x.jsonl", build({}, []))(said) == said
    assert [(one.column, one.kind) for one in found.findings] == [(column or "messages", "EMAIL_ADDRESS")]
