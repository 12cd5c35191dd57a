import csv
import dataclasses
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.prepare.conftest import SAMPLE
from toolkit.core import config, config_file, console
from toolkit.core.errors import ToolkitError
from toolkit.core.files import sha256_of
from toolkit.core.manifest import Outcome
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import prepare
from toolkit.prepare.bounds import TokenBound, is_byte_level
from toolkit.prepare.clean import Record
from toolkit.prepare.fit import _lengths, fit
from toolkit.prompt import format, renderings
from toolkit.prompt.tokenizer import Tokenizer


def build(*overrides: str) -> config.Config:
    return config_file.build({}, overrides)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def written(folder: RunFolder) -> list[dict[str, Any]]:
    return [row for name in SPLITS for row in lines(folder.split_file(name))]


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "exports/x", "x")


def accounted(outcome: Outcome, folder: RunFolder) -> dict[str, Any]:
    """Check that no row is lost and that the figures are those of the files."""
    figures = outcome.figures
    assert json.loads(json.dumps(figures)) == figures
    assert figures["kept"] + figures["duplicates"] + figures["rejected"] == figures["rows"]
    assert [figures[name] for name in SPLITS] == [len(lines(folder.split_file(name))) for name in SPLITS]
    assert figures["kept"] == sum(figures[name] for name in SPLITS)
    assert figures["rejected"] == len(lines(folder.rejected)) == sum(figures["reasons"].values())
    assert figures["questions"] == len({row["group"] for row in written(folder)})
    assert figures["truncated"] == sum(row["truncated"] for row in written(folder))
    assert outcome.outputs == [*(folder.split_file(name) for name in SPLITS), folder.rejected, folder.personal]
    assert figures["personal"]["rows"] == len({row["row"] for row in lines(folder.personal)})
    assert sorted(folder.data.parent.iterdir()) == [folder.data]
    return figures


def test_the_sample(folder: RunFolder, tokenizer: Tokenizer) -> None:
    figures = accounted(prepare(build(), folder, SAMPLE, tokenizer), folder)
    assert (figures["rows"], figures["duplicates"], figures["rejected"]) == (60, 1, 0)
    assert figures["val"] >= 5 and figures["test"] >= 5 and figures["leaked_questions"] == 0
    assert figures["questions"] < figures["kept"] and figures["truncated"] == 0
    assert figures["source_sha256"] == sha256_of(SAMPLE)
    for row in written(folder):
        assert list(row) == ["id", "row", "instruction", "input", "output", "group", "truncated"]
        assert row["id"] == f"SAMPLE_{row['row']:04d}" and row["instruction"] == "Explain:"
        assert row["output"].endswith(".") and "URL" not in row["input"]


@pytest.mark.slow
def test_real_medquad(
    folder: RunFolder, tokenizer: Tokenizer, medquad: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = build("train.max_length=8192")  # the small vocabulary has a token for every other letter
    figures = accounted(prepare(settings, folder, medquad, tokenizer), folder)
    assert (figures["rows"], figures["kept"], figures["duplicates"], figures["rejected"]) == (2479, 1929, 550, 0)
    assert (figures["train"], figures["val"], figures["test"]) == (1543, 193, 193)
    assert figures["questions"] == 1803 and figures["leaked_questions"] == 0 and figures["near_duplicates"] > 0
    assert (figures["damaged"], figures["repaired"]) == ({}, {}) and "warning" not in capsys.readouterr().err
    assert figures["columns"] == {"question and answer": "Answer", "id": "AnswerID"}


@pytest.mark.slow
@pytest.mark.parametrize("val", [0.1, 0.0])
def test_real_medquad_as_in_the_notebook(val: float, folder: RunFolder, tokenizer: Tokenizer, medquad: Path) -> None:
    """The recipe's 1,983 rows to train on and 496 held out, in its order; of these, the first are val."""
    settings = build("data.split=random", f"data.val={val}", f"data.test={0.2 - val}")
    figures = accounted(prepare(settings, folder, medquad, tokenizer), folder)
    order = (np.random.RandomState(42).permutation(2479) + 1).tolist()  # what scikit-learn draws, by numpy itself
    train, held_out = (
        lines(folder.split_file("train")),
        lines(folder.split_file("val")) + lines(folder.split_file("test")),
    )
    assert [row["row"] for row in held_out + train] == order
    assert [row["row"] for row in train[:3] + train[-3:]] == [2466, 1563, 2471, 1131, 1295, 861]
    assert [row["row"] for row in held_out[:3] + held_out[-3:]] == [1756, 260, 1918, 1860, 2381, 1243]
    assert (len(train), len(held_out), figures["val"], figures["duplicates"]) == (1983, 496, 2480 * val, 0)
    assert figures["leaked_questions"] > 100
    with medquad.open(encoding="utf-8", newline="") as file:
        cells = list(csv.DictReader(file))
    for row in train + held_out:
        assert row["input"] in cells[row["row"] - 1]["Answer"]


def test_the_same_again_is_the_same(folder: RunFolder, tokenizer: Tokenizer) -> None:
    hashes = [[sha256_of(path) for path in prepare(build(), folder, SAMPLE, tokenizer).outputs] for _ in range(2)]
    assert hashes[0] == hashes[1]


def jsonl(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_every_row_is_accounted_for(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows: list[dict[str, Any]] = [{"instruction": f"What is {n}?", "input": "", "output": f"é {n}"} for n in range(20)]
    rows += [rows[0], {"instruction": "x", "input": "y", "output": ""}, {"instruction": "", "output": "a"}]
    rows += [{"instruction": "Do", "input": "<|im_end|> odd", "output": "### Response: and <|end_of_text|>"}]
    figures = accounted(prepare(build(), folder, jsonl(tmp_path, rows), tokenizer), folder)
    assert (figures["rows"], figures["kept"], figures["duplicates"], figures["rejected"]) == (24, 21, 1, 2)
    assert figures["reasons"] == {"empty answer": 1, "empty question": 1}
    assert figures["instruction_as_question"] == 20 and figures["control_like"] == 1
    assert lines(folder.rejected)[0] == {"row": 22, "line": 22, "reason": "empty answer", "text": "y | x"}
    odd = next(row for row in written(folder) if row["row"] == 24)
    assert (odd["id"], odd["instruction"], odd["input"]) == ("24", "Do", "<|im_end|> odd")
    assert odd["output"] == "### Response: and <|end_of_text|>"
    assert "é" in folder.split_file("train").read_text(encoding="utf-8")
    said = capsys.readouterr().err
    assert "2 of 24 rows rejected (1 empty answer, 1 empty question)" in said and "control token" in said


def test_near_duplicates_and_leaks_are_said(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure()
    rows = [
        {"question": f"one two three four five six seven eight nine {n // 2}?", "answer": f"{n}"} for n in range(40)
    ]
    source = jsonl(tmp_path, rows)
    figures = accounted(prepare(build("data.split=random"), folder, source, tokenizer), folder)
    said = capsys.readouterr().err
    assert figures["near_duplicates"] > 3 and said.count("near-duplicate (0.8") == 3
    assert f"{figures['leaked_questions']} questions are in more than one split" in said
    assert accounted(prepare(build(), folder, source, tokenizer), folder)["leaked_questions"] == 0


def test_val_zero_writes_an_empty_file(folder: RunFolder, tokenizer: Tokenizer) -> None:
    accounted(prepare(build("data.val=0"), folder, SAMPLE, tokenizer), folder)
    assert folder.split_file("val").read_bytes() == b""


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b'{"question": "q", "answer": ""}\n' * 3, "no usable row: 3 of 3 rejected, 3 of them for: empty answer"),
        (b'{"question": "q", "answer": "a"}\n', "leaves val empty"),
        (b'{"text": "q"}\n', "no column with the answer"),
    ],
)
def test_failure_keeps_former_results(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, content: bytes, message: str
) -> None:
    outcome = prepare(build(), folder, SAMPLE, tokenizer)
    before = [sha256_of(path) for path in outcome.outputs]
    source = tmp_path / "bad.jsonl"
    source.write_bytes(content)
    with pytest.raises(ToolkitError) as caught:
        prepare(build(), folder, source, tokenizer)
    assert message in caught.value.message and caught.value.hint
    assert [sha256_of(path) for path in outcome.outputs] == before
    accounted(outcome, folder)


def test_a_full_disk_keeps_former_results(
    folder: RunFolder, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    import toolkit.prepare as room

    outcome = prepare(build(), folder, SAMPLE, tokenizer)
    real = room._write

    def full(fresh: Path, target: Path, rows: list[dict[str, Any]]) -> None:
        if target.name == "test.jsonl":
            raise OSError(28, "No space left on device", str(target))
        real(fresh, target, rows)

    monkeypatch.setattr(room, "_write", full)
    with pytest.raises(OSError):
        prepare(build("data.seed=7"), folder, SAMPLE, tokenizer)
    accounted(outcome, folder)


def test_nothing_is_left_behind_by_a_first_failure(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    with pytest.raises(ToolkitError):
        prepare(build(), folder, jsonl(tmp_path, [{"question": "q", "answer": "a"}]), tokenizer)
    assert not folder.path.exists()


def long_rows() -> list[dict[str, str]]:
    return [{"question": f"What is {n} ?", "answer": "word " * n} for n in range(1, 200)]


@pytest.mark.slow
def test_long_records_are_cut_and_keep_eos(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    settings = build("train.max_length=400")
    form = format.prompt_format(settings.prompt)
    figures = accounted(prepare(settings, folder, jsonl(tmp_path, long_rows()), tokenizer), folder)
    assert 0 < figures["truncated"] < figures["kept"] == 199 and figures["dropped_too_long"] == 0
    for row in written(folder):
        ids, _ = tokenizer.record_ids(renderings.prompt_text(form, row["input"], row["instruction"]), row["output"])
        assert len(ids) <= 400 and ids[-1] == tokenizer.eos
        whole = ("word " * row["row"]).strip()
        assert whole.startswith(row["output"]) and (row["output"] != whole) is row["truncated"]
        assert len(ids) >= 398 or not row["truncated"]


@pytest.mark.slow
def test_long_records_are_dropped(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    source = jsonl(tmp_path, long_rows())
    cut = prepare(build("train.max_length=400"), folder, source, tokenizer).figures
    settings = build("train.max_length=400", "data.on_too_long=drop")
    figures = accounted(prepare(settings, folder, source, tokenizer), folder)
    assert figures["dropped_too_long"] == cut["truncated"] > 0 and figures["truncated"] == 0
    assert figures["reasons"] == {"too long": cut["truncated"]}
    assert "train.max_length is 400" in lines(folder.rejected)[0]["detail"]


@pytest.mark.slow
@pytest.mark.parametrize(("long", "most"), [(30, True), (7, False)])
def test_cut_answers_are_warned_of_with_lengths_that_fit(
    long: int, most: bool, folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each length that is named is the least that does what it is said to do."""
    rows = [{"question": f"What is {n} ?", "answer": "word " * (150 + n if n < long else 5)} for n in range(100)]
    source = jsonl(tmp_path, rows)

    def cut(length: int) -> int:
        figures = prepare(build(f"train.max_length={length}"), folder, source, tokenizer).figures
        return int(figures["truncated"])

    assert cut(400) == long
    said = " ".join(capsys.readouterr().err.split())
    assert f"warning: {long} of 100 answers ({long}%) are cut at train.max_length = 400" in said
    named = re.search(r"`--set train.max_length=(\d+)` fits (?:90 % of them, (\d+) all|all of them)", said)
    assert named and bool(named[2]) is most
    every = int(named[2] or named[1])
    assert cut(every) == 0 < cut(every - 1)
    if most:
        assert cut(int(named[1])) <= 10 < cut(int(named[1]) - 1)


@pytest.mark.parametrize(("cut", "warned"), [(0, False), (4, False), (5, True)])
def test_few_cut_answers_are_no_warning(
    cut: int, warned: bool, folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What is {n} ?", "answer": "word " * (400 if n < cut else 5)} for n in range(100)]
    prepare(build("train.max_length=400"), folder, jsonl(tmp_path, rows), tokenizer)
    assert ("are cut at train.max_length" in capsys.readouterr().err) is warned


def test_the_language_is_a_figure_and_a_warning(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = ["Ruhen Sie sich aus und trinken Sie viel.", "Gehen Sie zum Arzt, wenn das Fieber anhält."]
    rows = [{"question": f"Was hilft gegen Nummer {n}?", "answer": f"{answers[n % 2]} ({n})"} for n in range(30)]
    source = jsonl(tmp_path, rows)
    assert prepare(build(), folder, source, tokenizer).figures["language"] == "de"
    assert "--set prompt.language=German" in " ".join(capsys.readouterr().err.split())
    prepare(build("prompt.language=German"), folder, source, tokenizer)
    assert "German" not in capsys.readouterr().err
    assert prepare(build(), folder, SAMPLE, tokenizer).figures["language"] == "en"
    assert "the answers are" not in capsys.readouterr().err


def test_few_questions_are_warned_of(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [{"question": f"What is {n} ?", "answer": f"It is {n}."} for n in range(5)]
    figures = prepare(build(), folder, jsonl(tmp_path, rows), tokenizer).figures
    assert [figures[name] for name in SPLITS] == [3, 1, 1]
    assert "val holds 1 question (1 row) and test holds 1 question" in " ".join(capsys.readouterr().err.split())


def test_instructions_over_one_input_are_the_questions(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"instruction": f"Explain disease {n}", "input": "In one line.", "output": f"{n}"} for n in range(30)]
    figures = accounted(prepare(build(), folder, jsonl(tmp_path, rows), tokenizer), folder)
    assert figures["questions"] == 30 and figures["val"] == figures["test"] == 3
    assert {row["input"] for row in written(folder)} == {"In one line."}


def test_a_prompt_without_room_is_rejected(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [*({"question": f"q {n}", "answer": "a"} for n in range(20)), {"question": "long " * 300, "answer": "a"}]
    figures = accounted(prepare(build("train.max_length=400"), folder, jsonl(tmp_path, rows), tokenizer), folder)
    assert figures["reasons"] == {"the prompt leaves no room for an answer": 1}
    assert lines(folder.rejected)[0]["row"] == 21 and figures["dropped_too_long"] == 1


def record(answer: str, question: str = "q") -> Record:
    return Record("1", 1, 1, "Explain:", question, answer, "q")


@pytest.mark.parametrize(
    "answer", ["a", "word " * 300, "é∂漢字🙂 " * 40, "x" * 1500, "\n\n " * 200, "<|end_of_text|>" * 30]
)
def test_lengths_are_those_of_training(tokenizer: Tokenizer, answer: str) -> None:
    settings = build()
    form = format.prompt_format(settings.prompt)
    prompt = renderings.render(form, "q")
    ids, _ = tokenizer.record_ids(prompt, answer)
    assert _lengths([(prompt, answer)], tokenizer) == [len(ids)]
    for limit, fits in ((len(ids), True), (len(ids) - 1, False)):
        kept, rejected = fit(
            [record(answer)], form, TokenBound(tokenizer), build(f"train.max_length={limit}", "data.on_too_long=drop")
        )
        assert (len(kept), len(rejected)) == ((1, 0) if fits else (0, 1))


def test_only_byte_level_tokenizers_are_trusted_unseen(tokenizer: Tokenizer) -> None:
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models, pre_tokenizers

    assert is_byte_level(tokenizer)
    # A unigram-like worst case: one character may become several tokens where bytes are spelled out.
    vocabulary = {"<unk>": 0, "▁": 1, **{f"<0x{code:02X}>": code + 2 for code in range(256)}}
    spelled = Encoder(models.BPE(vocabulary, [], unk_token="<unk>", byte_fallback=True))
    spelled.pre_tokenizer = pre_tokenizers.Metaspace()
    other = dataclasses.replace(tokenizer, encoder=spelled, bos=None, eos=0)
    assert not is_byte_level(other)
    settings = build("train.max_length=500", "data.on_too_long=drop")
    form = format.prompt_format(settings.prompt)
    text = renderings.prompt_text(form, "q")
    for length in (10, 100, 300):
        ids, _ = other.record_ids(text, "é" * length)
        kept, _ = fit([record("é" * length)], form, TokenBound(other), settings)
        assert bool(kept) is (len(ids) <= 500)


def test_a_token_for_every_byte_is_the_worst_case(tokenizer: Tokenizer) -> None:
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models, pre_tokenizers

    alphabet = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    encoder = Encoder(models.BPE(alphabet, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    spelled = dataclasses.replace(tokenizer, encoder=encoder)
    form = format.prompt_format(build().prompt)
    assert is_byte_level(spelled)
    for length in range(90, 110):
        ids, _ = spelled.record_ids(renderings.prompt_text(form, "q"), "x" * length)
        for limit in range(len(ids) - 3, len(ids) + 4):
            settings = build(f"train.max_length={limit}", "data.on_too_long=drop")
            assert bool(fit([record("x" * length)], form, TokenBound(spelled), settings)[0]) is (len(ids) <= limit)


def test_a_normalizer_that_lengthens_text(tokenizer: Tokenizer) -> None:
    """U+1D160 has 4 bytes, and 12 after NFC: counted after the normalizer, as the model sees it."""
    from tokenizers import Tokenizer as Encoder
    from tokenizers import normalizers

    encoder = Encoder.from_str(tokenizer.encoder.to_str())
    encoder.normalizer = normalizers.NFC()
    other = dataclasses.replace(tokenizer, encoder=encoder)
    settings = build("data.on_too_long=drop", "train.max_length=800")
    form = format.prompt_format(settings.prompt)
    answer = "\U0001d160" * 80
    ids, _ = other.record_ids(renderings.prompt_text(form, "q"), answer)
    assert len(ids) > 800 > len((renderings.prompt_text(form, "q") + answer).encode())
    assert fit([record(answer)], form, TokenBound(other), settings)[0] == []


def test_context_stands_in_front_of_the_question(folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path) -> None:
    rows = [{"context": f"Leaflet {n}.", "question": "How many?", "answer": f"{n}."} for n in range(20)]
    rows += [
        {"context": "", "question": "Why?", "answer": "So."},
        {"context": "nan", "question": "When?", "answer": "Now."},
    ]
    source = jsonl(tmp_path, rows)
    accounted(prepare(build("data.context_column=context"), folder, source, tokenizer), folder)
    by_row = {row["row"]: row for row in written(folder)}
    assert by_row[1]["input"] == "Leaflet 0.\n\nHow many?" and by_row[1]["instruction"] == "Explain:"
    assert by_row[21]["input"] == "Why?" and by_row[22]["input"] == "When?"
    # Two questions that differ in their context alone are two questions.
    assert len({row["group"] for row in by_row.values()}) == 22


@pytest.mark.parametrize(
    ("cell", "text"), [(["one", "two"], "one\n\ntwo"), ({"A": "yes", "B": "no"}, "A: yes\nB: no"), (["one"], "one")]
)
def test_context_of_several_texts(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, cell: object, text: str
) -> None:
    rows = [{"instruction": "Do", "input": f"q {n}", "context": cell, "output": "a"} for n in range(20)]
    prepare(build("data.context_column=context"), folder, jsonl(tmp_path, rows), tokenizer)
    row = next(row for row in written(folder) if row["row"] == 1)
    assert (row["instruction"], row["input"]) == ("Do", f"{text}\n\nq 0")


def test_what_is_taken_left_and_spoiled_is_said(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure()
    rows = [{"context": "c", "question": f"<p>Q&amp;A {n}</p>", "answer": f"nÃ£o {n}"} for n in range(20)]
    source = jsonl(tmp_path, rows)
    figures = accounted(prepare(build(), folder, source, tokenizer), folder)
    said = capsys.readouterr().err
    assert "question ← question, answer ← answer; not used: context\n" in said
    assert "column `context` is not used" in said and "data.context_column=context" in said
    assert said.count("""`--set 'data.clean=["html", "mojibake"]'` repairs them""") == 2
    assert (figures["damaged"], figures["repaired"]) == ({"html": 20, "mojibake": 20}, {})
    assert figures["columns"] == {"question": "question", "answer": "answer"}
    assert figures["unused_columns"] == ["context"]

    figures = accounted(prepare(build('data.clean=["html", "mojibake"]'), folder, source, tokenizer), folder)
    said = capsys.readouterr().err
    assert (figures["damaged"], figures["repaired"]) == ({}, {"mojibake": 20, "html": 20})
    assert "20 of 20 rows repaired (data.clean html)" in said and "repairs them" not in said
    row = next(row for row in written(folder) if row["row"] == 1)
    assert (row["input"], row["output"]) == ("Q&A 0", "não 0")


def test_spreadsheet_leftovers_are_counted(
    folder: RunFolder, tokenizer: Tokenizer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    console.configure()
    source = tmp_path / "joined.csv"
    rows = [f"What is {n}?,Answer {n} for p < 0.05 & NA in text.\n" for n in range(20)]
    more = ["Question ,ANSWER\n", "What is N/A?,None\n", "nan,a\n", ",\n", " , \n"]
    source.write_text("".join(["question,answer\n", *rows, *more]))
    figures = accounted(prepare(build(), folder, source, tokenizer), folder)
    assert (figures["rows"], figures["kept"]) == (23, 20)
    assert figures["reasons"] == {"the header again": 1, "empty answer": 1, "empty question": 1}
    said = capsys.readouterr().err
    assert "empty answer: cells of `None` count as empty; `--set data.null_words=text` keeps them" in said
    assert "the header again:" not in said
    figures = accounted(prepare(build("data.null_words=text"), folder, source, tokenizer), folder)
    assert (figures["kept"], figures["reasons"]) == (22, {"the header again": 1})
