"""The tokens of a large split are made once, by several processes, and kept on the disk."""

import json
import shutil
from pathlib import Path

import pytest

from toolkit.core import hardware
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import PromptSettings
from toolkit.core.train_settings import TrainSettings
from toolkit.model.base import Base
from toolkit.prompt.format import PromptFormat, prompt_format
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer
from toolkit.train import examples

pytestmark = pytest.mark.slow

FORM = prompt_format(PromptSettings())
SETTINGS = TrainSettings(max_length=1024)


def write(path: Path, count: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    records = []
    for number in range(count):
        texts = {"instruction": "Explain:", "input": f"What is {number}?\u2028", "output": "é " * (number % 7 + 1)}
        history = {"history": [["a", "b"]]} if number == count - 1 else {}
        records.append({"row": number, **texts, "truncated": number % 3 == 0, **history})
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), encoding="utf-8")
    return path


@pytest.fixture
def tokenizer(base: Base, monkeypatch: pytest.MonkeyPatch) -> Tokenizer:
    """A vocabulary, where every split is large and there are three cores."""
    monkeypatch.setattr(examples, "LARGE", 0)
    monkeypatch.setattr(hardware, "cores", lambda: 3)
    return load_tokenizer(base.folder)


@pytest.mark.parametrize("count", [1, 40])
def test_it_has_the_examples_of_a_small_one(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    path = write(tmp_path / "run/data/train.jsonl", count)
    large = examples.tokenize(path, tokenizer, FORM, SETTINGS)
    monkeypatch.setattr(examples, "LARGE", 2**30)
    small = examples.tokenize(path, tokenizer, FORM, SETTINGS)
    assert [*large] == [*small] == large[:] and large[-1] == small[count - 1]
    assert large.lengths.tolist() == [len(one.input_ids) for one in small]
    assert large.few(3)[:] == small.few(3)[:] and len(large.few(count)) == count
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


def test_a_second_run_reads_what_the_first_wrote(
    tokenizer: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write(tmp_path / "run/data/train.jsonl", 20)
    first = [*examples.tokenize(path, tokenizer, FORM, SETTINGS)]
    (kept,) = (tmp_path / "run/.tokens").iterdir()
    with monkeypatch.context() as patch:
        patch.setattr(examples, "_tokenized", None)
        assert [*examples.tokenize(path, tokenizer, FORM, SETTINGS)] == first
    # Anything that changes a token makes them anew, and the former go.
    form, other = prompt_format(PromptSettings(preset="chatml")), TrainSettings(max_length=1023)
    changes: list[tuple[PromptFormat, TrainSettings]] = [(form, SETTINGS), (FORM, other)]
    for changed in changes:
        examples.tokenize(path, tokenizer, *changed)
        (now,) = (tmp_path / "run/.tokens").iterdir()
        assert now != kept
        kept = now
    write(path, 21)
    assert len(examples.tokenize(path, tokenizer, FORM, SETTINGS)) == 21


def test_what_is_wrong_with_it_is_said_as_of_a_small_one(tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = write(tmp_path / "run/data/train.jsonl", 20)
    with pytest.raises(ToolkitError, match=r"row 0 has \d+ tokens, but train.max_length is 16"):
        examples.tokenize(path, tokenizer, FORM, TrainSettings(max_length=16))
    with path.open("a") as file:
        file.write('{"row": 1}\n')
    with pytest.raises(ToolkitError, match="line 21 is not a record"):
        examples.tokenize(path, tokenizer, FORM, SETTINGS)
    shutil.rmtree(tmp_path / "run/.tokens")
