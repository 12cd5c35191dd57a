"""What training sees: labels, EOS, BOS, and the refusal of records that are wrong."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from toolkit.core.config import Config
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.core.run_folder import RunFolder
from toolkit.core.train_settings import TrainSettings
from toolkit.model.base import Base
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import prompt_text
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.train import example_table, examples
from toolkit.train.example_table import IGNORED, Example

FORM = prompt_format(PromptSettings())


def one(path: Path, tokenizer: Tokenizer, record: dict[str, Any], settings: TrainSettings) -> Example:
    values = {"row": 7, "instruction": "Explain:", "truncated": False, **record}
    path.write_text(json.dumps(values) + "\n")
    return examples.tokenize(path, tokenizer, FORM, settings)[0]


def test_only_the_answer_and_eos_are_learned(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    example = one(tmp_path / "x", tokenizer, {"input": "What?", "output": "That."}, TrainSettings())
    learned = [token for token in example.labels if token != IGNORED]
    assert tokenizer.decode(learned) == "That.<|end_of_text|>"
    ignored = example.input_ids[: len(example.input_ids) - len(learned)]
    assert tokenizer.decode(ignored) == "<|begin_of_text|>" + prompt_text(FORM, "What?", "Explain:")
    whole = one(
        tmp_path / "x", tokenizer, {"input": "What?", "output": "That."}, TrainSettings(completion_only_loss=False)
    )
    assert whole.labels == whole.input_ids == example.input_ids


@pytest.mark.parametrize("text", ["<|end_of_text|>", "<|begin_of_text|> ### Response:\n", "a<|pad|>b"])
def test_text_like_control_tokens_is_learned_as_text(base: Base, tmp_path: Path, text: str) -> None:
    tokenizer = load_tokenizer(base.folder)
    example = one(tmp_path / "x", tokenizer, {"input": text, "output": f"x {text} y"}, TrainSettings())
    examples.prove_examples([example], tokenizer)
    assert tokenizer.bos is not None
    assert example.input_ids.count(tokenizer.eos) == 1
    assert example.input_ids.count(tokenizer.bos) == 1


def test_proof_finds_missing_eos_doubled_bos_and_nothing_to_learn(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    good = one(tmp_path / "x", tokenizer, {"input": "What?", "output": "That."}, TrainSettings())
    examples.prove_examples([good], tokenizer)
    assert tokenizer.bos is not None
    for bad, said in (
        (replace(good, input_ids=good.input_ids[:-1], labels=good.labels[:-1]), "EOS"),
        (replace(good, labels=[*good.labels[:-1], IGNORED]), "EOS"),
        (replace(good, input_ids=[tokenizer.bos, *good.input_ids], labels=[IGNORED, *good.labels]), "BOS occurs 2"),
        (replace(good, input_ids=good.input_ids[1:], labels=good.labels[1:]), "BOS occurs 0"),
        (replace(good, labels=[IGNORED] * (len(good.labels) - 1) + [tokenizer.eos]), "no part of its answer"),
    ):
        with pytest.raises(ToolkitError, match=f"row 7.*{said}"):
            examples.prove_examples([good, bad], tokenizer)


def test_a_cut_answer_does_not_teach_to_stop(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    cut: dict[str, Any] = {"input": "What?", "output": "That is so because", "truncated": True}
    example = one(tmp_path / "x", tokenizer, cut, TrainSettings())
    whole = one(tmp_path / "x", tokenizer, {**cut, "truncated": False}, TrainSettings())
    assert whole.input_ids == [*example.input_ids, tokenizer.eos] and whole.labels == [*example.labels, tokenizer.eos]
    examples.prove_examples([example, whole], tokenizer)
    for bad, said in (
        (replace(whole, truncated=True), "EOS .* follows the cut"),
        (replace(example, truncated=False), "do not end in EOS"),
        (replace(example, labels=[IGNORED] * len(example.labels)), "no part of its answer"),
    ):
        with pytest.raises(ToolkitError, match=f"row 7.*{said}"):
            examples.prove_examples([example, bad], tokenizer)


def test_a_record_over_the_context_is_refused(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    with pytest.raises(ToolkitError, match=r"row 7 has .* tokens"):
        one(tmp_path / "x", tokenizer, {"input": "a", "output": "b " * 300}, TrainSettings(max_length=128))


def test_records_are_filled_up_to_a_multiple_with_copies_of_which_nothing_is_learned() -> None:
    records = [
        Example([5, 6, 7], [IGNORED, 6, 7], 1, False),
        Example([8, 9], [8, 9], 2, False),
    ]
    plain = example_table.dataset(records)
    assert plain.column_names == ["input_ids", "labels"]
    assert plain["input_ids"][:] == [[5, 6, 7], [8, 9]] and plain["labels"][:] == [[IGNORED, 6, 7], [8, 9]]
    filled = example_table.dataset(records, multiple=4)
    assert len(filled) == 4 and len(example_table.dataset(records, multiple=2)) == 2
    assert filled["input_ids"][:2] == plain["input_ids"][:] and filled["labels"][:2] == plain["labels"][:]
    assert filled["input_ids"][2:] == [[5, 6, 7]] * 2 and filled["labels"][2:] == [[IGNORED] * 3] * 2


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [(3, 2), (16,), (9, 8), (15, 16)])
def test_a_row_is_filled_up_to_a_multiple_with_a_record_of_which_nothing_is_learned(lengths: tuple[int, ...]) -> None:
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from toolkit.train.speed import filled_up

    collator = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    ids = [list(range(5, 5 + length)) for length in lengths]
    records = [{"input_ids": some, "labels": list(some)} for some in ids]
    plain, filled = collator(records), filled_up(collator, records)
    tokens = sum(lengths)
    assert set(filled) == set(plain)
    assert filled["input_ids"].shape == (1, -(-tokens // 16) * 16)
    for name, values in plain.items():
        assert filled[name][0, :tokens].tolist() == values[0].tolist()
    missing = -tokens % 16
    assert filled["position_ids"][0, tokens:].tolist() == list(range(missing))  # a record of its own
    assert filled["labels"][0, tokens:].tolist() == [IGNORED] * missing
    starts = [sum(lengths[:place]) for place in range(len(lengths))]
    assert (plain["labels"][0] == IGNORED).nonzero()[:, 0].tolist() == starts  # nothing is predicted across records


def test_missing_data_names_the_verb(base: Base, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError) as caught:
        examples.tokenize(tmp_path / "train.jsonl", load_tokenizer(base.folder), FORM, TrainSettings())
    assert "toolkit prepare" in caught.value.hint


def test_examples_are_shown_as_the_model_sees_them(
    base: Base, small: tuple[Config, RunFolder], capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(base.folder)
    settings, folder = small
    examples.show(examples.tokenize(folder.split_file("train"), tokenizer, FORM, settings.train), tokenizer)
    shown = capsys.readouterr().err
    assert shown.count("--- example") == 3
    assert "<|begin_of_text|>Below is an instruction" in shown
    assert "### Response:\n▶See a doctor if it lasts for more than a week. (1)<|end_of_text|>" in shown


CHAT: dict[str, Any] = {
    "history": [["What?", "That."], ["Why?", "Because it is."]],
    "input": "And then?",
    "output": "Then rest.",
}


def learned_texts(example: Example, tokenizer: Tokenizer) -> list[str]:
    """Return the texts that are learned, each without a gap."""
    found: list[list[int]] = [[]]
    for token, label in zip(example.input_ids, example.labels, strict=True):
        if label == IGNORED:
            found.append([])
        else:
            assert label == token
            found[-1].append(token)
    return [tokenizer.decode(ids) for ids in found if ids]


def test_every_answer_of_a_chat_is_learned_with_its_eos(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    example = one(tmp_path / "x", tokenizer, CHAT, TrainSettings())
    end = "<|end_of_text|>"
    assert learned_texts(example, tokenizer) == [f"That.{end}", f"Because it is.{end}", f"Then rest.{end}"]
    last = one(tmp_path / "x", tokenizer, CHAT, TrainSettings(turns="last"))
    assert learned_texts(last, tokenizer) == [f"Then rest.{end}"] and last.input_ids == example.input_ids
    cut = one(tmp_path / "x", tokenizer, {**CHAT, "truncated": True}, TrainSettings())
    assert learned_texts(cut, tokenizer) == [f"That.{end}", f"Because it is.{end}", "Then rest."]
    whole = one(tmp_path / "x", tokenizer, CHAT, TrainSettings(completion_only_loss=False))
    assert whole.labels == whole.input_ids == example.input_ids
    examples.prove_examples([example, last, cut, whole], tokenizer)


@pytest.mark.parametrize("text", ["That.", "### Response:\n", "<|end_of_text|>", "What?\n\n### Response:\nThat."])
def test_answers_that_look_like_the_prompt_or_each_other_are_told_apart_by_their_place(
    base: Base, tmp_path: Path, text: str
) -> None:
    tokenizer = load_tokenizer(base.folder)
    record = {"history": [[text, text.strip()], [text, text.strip()]], "input": text, "output": text.strip()}
    example = one(tmp_path / "x", tokenizer, record, TrainSettings())
    assert learned_texts(example, tokenizer) == [f"{text.strip()}<|end_of_text|>"] * 3
    examples.prove_examples([example], tokenizer)


def test_the_proof_finds_a_chat_whose_answers_are_not_learned_as_they_should(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    good = one(tmp_path / "x", tokenizer, CHAT, TrainSettings())
    first, end = good.answers[0]

    def changed(place: int, label: int) -> Example:
        return replace(good, labels=[*good.labels[:place], label, *good.labels[place + 1 :]])

    def without_eos(example: Example) -> Example:
        ids = [*example.input_ids[: end - 1], 7, *example.input_ids[end:]]
        return replace(example, input_ids=ids, labels=[*example.labels[: end - 1], 7, *example.labels[end:]])

    for bad, said in (
        (changed(end - 1, IGNORED), "answer 1 of 3: not all of it"),
        (changed(first, IGNORED), "answer 1 of 3: not all of it"),
        (changed(end, good.input_ids[end]), "answer 2 of 3: something before it"),
        (changed(first - 1, good.input_ids[first - 1]), "answer 1 of 3: something before it"),
        (without_eos(good), "answer 1 of 3: it does not end in EOS"),
        (replace(good, labels=[IGNORED] * good.answers[2][0] + good.labels[good.answers[2][0] :]), "not all of it"),
    ):
        with pytest.raises(ToolkitError, match=f"row 7.*{said}"):
            examples.prove_examples([good, bad], tokenizer)


def test_a_chat_is_shown_with_where_each_answer_begins_and_ends(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = load_tokenizer(base.folder)
    example = one(tmp_path / "x", tokenizer, CHAT, TrainSettings())
    long = one(tmp_path / "x", tokenizer, {**CHAT, "history": CHAT["history"] * 20}, TrainSettings(max_length=9999))
    examples.prove_examples([example], tokenizer)
    examples.show([example, long], tokenizer)
    shown = capsys.readouterr().err
    assert "1 records with 3 learned answers: all complete answers end in EOS" in shown
    assert "3 answers learned, each from ▶ to ◀" in shown
    (first, end), *_ = example.answers
    assert f"answer 1: tokens {first + 1} to {end}; 2: tokens" in shown
    assert "### Response:\n▶That.<|end_of_text|>◀\n\nBelow is an instruction" in shown
    assert "▶Then rest.<|end_of_text|>◀" in shown
    assert "41 answers learned" in shown and " […] " in shown and shown.count("◀") < 20


@pytest.mark.parametrize("record", [CHAT, {"input": "What?", "output": "That."}])
def test_of_records_that_are_learned_whole_the_proof_says_what_it_knows(
    base: Base, tmp_path: Path, capsys: pytest.CaptureFixture[str], record: dict[str, Any]
) -> None:
    tokenizer, settings = load_tokenizer(base.folder), TrainSettings(completion_only_loss=False)
    cut = one(tmp_path / "x", tokenizer, {**record, "truncated": True}, settings)
    examples.prove_examples([one(tmp_path / "x", tokenizer, record, settings), cut], tokenizer)
    shown = capsys.readouterr().err
    assert "2 records: all complete records end in EOS, one BOS; 1 cut records have no EOS" in shown


def test_a_chat_with_thoughts_is_learned_by_its_last_answer_alone(base: Base, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(base.folder)
    thoughts = {**CHAT, "output": "<think>\nHm.\n</think>\n\nThen rest."}
    with pytest.raises(ToolkitError, match=r"row 7 .*without thoughts") as caught:
        one(tmp_path / "x", tokenizer, thoughts, TrainSettings())
    assert "`--set train.turns=last` learns" in caught.value.hint
    whole = TrainSettings(completion_only_loss=False)
    with pytest.raises(ToolkitError, match=r"row 7 .*without thoughts") as caught:
        one(tmp_path / "x", tokenizer, thoughts, whole)
    assert "`--set train.turns=last --set train.completion_only_loss=true`" in caught.value.hint
    alone = {"input": "What?", "output": thoughts["output"]}
    assert one(tmp_path / "x", tokenizer, alone, whole).labels[-1] == tokenizer.eos
    assert learned_texts(one(tmp_path / "x", tokenizer, thoughts, TrainSettings(turns="last")), tokenizer)
