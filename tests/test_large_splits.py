"""What reads a whole split keeps little of it: eight times the rows take about the memory of one."""

import json
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.models import save_tokenizer
from toolkit.core import spool
from toolkit.core.config import Config
from toolkit.core.records import Records
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import copied
from toolkit.evaluate.copied import longest_runs
from toolkit.evaluate.held_out import read_questions
from toolkit.evaluate.memorised import read_beginnings
from toolkit.export import imatrix
from toolkit.prompt.format import prompt_format
from toolkit.prompt.held_out import read_held_out
from toolkit.prompt.tokenizer import Tokenizer, load_tokenizer

FORM = prompt_format(Config().prompt)
FEW = 50


def split(path: Path, rows: int) -> None:
    """Write rows of 40 words, of which hardly one stands in two rows."""
    words = (" ".join(f"w{number}x{word}" for word in range(40)) for number in range(rows))
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for number, text in enumerate(words, 1):
            record = {"instruction": "", "input": f"{path.stem} {number}?", "output": text, "row": number}
            file.write(json.dumps(record) + "\n")


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    folder = tmp_path_factory.mktemp("base")
    save_tokenizer(folder)
    return load_tokenizer(folder)


def _copied(folder: RunFolder, tokenizer: Tokenizer) -> Any:
    records = ((number, one["output"]) for number, one in enumerate(Records(folder.split_file("train"))))
    return longest_runs(["w3x1 w3x2 w3x3", "none"], records)[0].words


READERS: dict[str, Callable[[RunFolder, Tokenizer], Any]] = {
    "evaluate's questions": lambda folder, tokenizer: len(read_questions(folder, FORM, tokenizer, 9)[1]),
    "evaluate's beginnings": lambda folder, tokenizer: len(read_beginnings(folder, FORM, "</s>", 9)[1]),
    "evaluate's copied runs": _copied,
    "validate's records": lambda folder, tokenizer: sum(
        one.row for one in read_held_out(folder.split_file("test"), FORM, tokenizer)
    ),
    "imatrix's pieces": lambda folder, tokenizer: len(imatrix.chunks(folder, FORM, tokenizer, 16)[0]),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", READERS)
def test_memory_does_not_grow_with_the_rows(
    name: str, tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for bound in ("KEPT", "READ", "WRITTEN"):
        monkeypatch.setattr(spool, bound, 8)
    monkeypatch.setattr(copied, "PART", 500)
    peaks = []
    for rows in (FEW, FEW, 8 * FEW):  # the first one loads what is loaded once
        folder = RunFolder(tmp_path / f"{rows}", "x")
        for side in ("train", "val", "test"):
            split(folder.split_file(side), rows)
        tracemalloc.start()
        assert READERS[name](folder, tokenizer)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[2] - peaks[1] < 150 * 8 * FEW, peaks  # a few numbers of each row; a row itself has 1,200 bytes


def test_records_are_read_by_their_number(tmp_path: Path) -> None:
    path = tmp_path / "test.jsonl"
    split(path, 30)
    whole = [json.loads(line) for line in path.read_text().splitlines()]
    found = Records(path)
    assert [*found] == whole == found[:] and len(found) == 30 and found[-1] == whole[-1] == found[29]
    assert [found[number] for number in np.random.default_rng(0).permutation(30).tolist()] != whole
    with pytest.raises(IndexError):
        found[30]
    path.write_text("")
    assert not Records(path) and [*Records(path)] == []
