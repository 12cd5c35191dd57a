"""What a file is said to be, and that its hint works: the commands of the hints are run."""

import bz2
import io
import json
import lzma
import re
import shlex
import subprocess
import sys
import tarfile
import warnings
import zipfile
from pathlib import Path
from typing import Literal

import pytest

from tests.support.processor import processor_seconds
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare.column_choice import find_columns
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.decoding import encoding_hint
from toolkit.prepare.read import read_table
from toolkit.prepare.table import Table

CSV = b"question,answer\nq,a\nr,b\n"
FOREIGN = "question,answer\n" + "Não é febre?,É água à mesa, não há médico\n".replace(", n", " n") * 6


JAPANESE = "question,answer\n" + "咳に効くものは何ですか？,休息と水です。カタカナも使います\n" * 6


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Work in a folder of one's own, in which hints may write."""
    folder = tmp_path / "work here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def refusal(path: Path) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        read_table(path, wanted_names(DataSettings()))
    return caught.value


def follow(hint: str) -> Table:
    """Run a hint's command, and read the file that its setting names."""
    command, setting = re.findall(r"`([^`]+)`", hint)[-2:]
    command = re.sub(r"^python\b", shlex.quote(sys.executable), command)
    subprocess.run(command, shell=True, check=True)
    option, assignment = shlex.split(setting)
    assert option == "--set"
    return read_table(Path(assignment.removeprefix("data.source=")), wanted_names(DataSettings()))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("faq.jsonl", "{'question': 'q', 'answer': \"it's a\"}\n{'question': 'r', 'answer': 'b', 'id': None}\n"),
        ("faq.jsonl", '{"question": "q", "answer": "it\'s a", "sure": True}\n\n{"question": "r", "answer": "b"}\n'),
        ("faq.json", "[{'question': 'q', 'answer': \"it's a\"}, {'question': 'r', 'answer': 'b'}]"),
        ("faq.json", '[{"question": "q", "answer": "it\'s a", "sure": False}, {"question": "r", "answer": "b"}]'),
    ],
)
def test_what_python_printed_is_written_as_json(name: str, content: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(ToolkitError, match=r"is not (valid )?JSON") as caught:
        read_table(Path(name), wanted_names(DataSettings()))
    table = follow(caught.value.hint)
    assert [[row.values[name] for name in ("question", "answer")] for row in table.rows] == [
        ["q", "it's a"],
        ["r", "b"],
    ]


@pytest.mark.parametrize(
    ("name", "content", "hint"),
    [
        ("faq.json", '[{"question": "q", "answer": "a"},\n]', "remove the comma in front of that `]`"),
        (
            "faq.jsonl",
            '{"question": "q", "answer": "a",}\n{"question": "r"}\n',
            "remove the comma in front of that `}`",
        ),
        ("faq.json", '[{"question": "q", "answer": "a"}, {"ques', "broken or truncated"),
        ("faq.jsonl", '{"question": "q", "answer": "a"}\n{"ques', "truncated file is incomplete"),
    ],
)
def test_the_hint_for_what_is_nearly_json(name: str, content: str, hint: str) -> None:
    Path(name).write_text(content)
    with pytest.raises(ToolkitError, match=r"is not (valid )?JSON") as caught:
        read_table(Path(name), wanted_names(DataSettings()))
    assert hint in caught.value.hint


@pytest.mark.parametrize("name", ["faq.csv", "faq.tsv", "faq.jsonl", "faq.json", "faq.parquet", "faq.xlsx"])
def test_a_pointer_of_git_lfs_is_no_data(name: str) -> None:
    Path(name).write_text(f"version https://git-lfs.github.com/spec/v1\noid sha256:{'4d7a' * 16}\nsize 12345\n")
    with pytest.raises(ToolkitError, match="a Git LFS pointer") as caught:
        read_table(Path(name), wanted_names(DataSettings()))
    assert "`git lfs pull`" in caught.value.hint


def test_an_encoding_is_asked_for_by_the_letters_that_tell_it() -> None:
    line = "What helps against a cough that does not end, and how long does it last for a café owner?,Tea\n"
    for shown in (line, line[20:]):
        hint = encoding_hint(Path("faq.csv"), [b"question,answer\n", shown.encode("cp1252")])
        assert "café" in hint.partition(" reads `")[2].partition("`")[0]


def zipped(path: Path, members: dict[str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("plain.csv.bz2", bz2.compress(CSV), "a bzip2 file"),
        ("it's plain.csv", bz2.compress(CSV), "a bzip2 file"),
        ("data.xz", lzma.compress(CSV), "an xz file"),
        ("plain.csv.xz", lzma.compress(CSV), "an xz file"),
        (
            "plain.jsonl.xz",
            lzma.compress(b'{"question": "q", "answer": "a"}\n{"question": "r", "answer": "b"}'),
            "an xz file",
        ),
    ],
)
def test_the_hint_unpacks(tmp_path: Path, name: str, content: bytes, said: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    error = refusal(path)
    assert said in error.message
    assert len(follow(error.hint).rows) == 2


def test_the_hint_overwrites_nothing(tmp_path: Path, elsewhere: Path) -> None:
    (elsewhere / "plain.csv").write_bytes(b"mine")
    path = tmp_path / "plain.csv.xz"
    path.write_bytes(lzma.compress(CSV))
    assert len(follow(refusal(path).hint).rows) == 2
    assert (elsewhere / "plain.csv").read_bytes() == b"mine"


@pytest.mark.parametrize("mode", ["w", "w:gz"])
@pytest.mark.parametrize("name", ["all.tar", "plain.csv", "no extension"])
def test_the_hint_unpacks_a_tar(tmp_path: Path, elsewhere: Path, mode: Literal["w", "w:gz"], name: str) -> None:
    """Into a folder of its own, where it overwrites nothing."""
    name = name if mode == "w" else f"{name}.tar.gz"
    with tarfile.open(tmp_path / name, mode) as archive:
        for inner, content in (("plain.csv", CSV), ("README", b"x")):
            info = tarfile.TarInfo(inner)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    (elsewhere / "plain.csv").write_bytes(b"mine")
    assert len(follow(refusal(tmp_path / name).hint).rows) == 2
    assert (elsewhere / "plain.csv").read_bytes() == b"mine"


@pytest.mark.slow
def test_the_hint_converts_an_old_feather_file(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import feather

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        feather.write_feather(pa.table({"question": ["q", "r"], "answer": ["a", "b"]}), tmp_path / "x", version=1)
    error = refusal(tmp_path / "x")
    assert "an old Feather file" in error.message and len(follow(error.hint).rows) == 2


def test_the_hint_takes_the_table_of_a_markdown_file(tmp_path: Path) -> None:
    path = tmp_path / "our faq.md"
    path.write_text("# Questions\n\n| question | answer |\n|:---|---:|\n| q | a |\n| r | b |\n\nMore.\n")
    error = refusal(path)
    assert "a Markdown file" in error.message and len(follow(error.hint).rows) == 2
    path.write_text("# Questions\n\nWhat helps?\n\nRest.\n")
    assert "question,answer" in refusal(path).hint


def test_a_markdown_file_of_many_spaces_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "x.md"
    path.write_text(f"# Questions\n{' ' * 200_000}x\n")
    with processor_seconds(5):
        assert "question,answer" in refusal(path).hint


SQUAD = {"context": "Text.", "qas": [
    {"id": "1", "question": "q", "answers": [{"text": "a", "answer_start": 0}], "is_impossible": False},
    {"id": "2", "question": "r", "answers": [{"text": "b", "answer_start": 3}]},
]}  # fmt: skip
ROWS = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]


@pytest.mark.parametrize(
    ("content", "where"),
    [
        ({"version": "2.0", "data": [{"title": "T", "paragraphs": [SQUAD]}]}, "data.paragraphs.qas"),
        ([{"title": "T", "paragraphs": [SQUAD]}], "paragraphs.qas"),
        ({"train": ROWS, "test": ROWS[:1]}, "`train`, `test`"),
        ({"meta": {"v": 1}, "data": {"train": ROWS}}, "data.train"),
        ([{"topic": "x", "faq": ROWS[:1]}, {"topic": "y", "faq": ROWS[1:]}], "faq"),
        ({"x": {"items": ROWS}, "y": [1, 2], "z": [{"a": 1}]}, "x.items"),
    ],
)
@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_the_hint_lists_records_that_lie_deeper(tmp_path: Path, content: object, where: str, kind: str) -> None:
    path = tmp_path / f"it's {kind}.{kind}"
    lines = content if kind == "jsonl" and isinstance(content, list) else [content]
    path.write_text("\n".join(map(json.dumps, lines)) if kind == "jsonl" else json.dumps(content))
    with pytest.raises(ToolkitError) as caught:
        find_columns(read_table(path, wanted_names(DataSettings())), DataSettings())
    assert where in caught.value.hint
    table = follow(caught.value.hint)
    assert [(row.values["question"], row.values["answer"]) for row in table.rows] == [("q", "a"), ("r", "b")]
    if "qas" in where:
        assert {row.values["context"] for row in table.rows} == {"Text."}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("question^answer\nq^a, so\nr^b\n", "separated by '^'"),
        ("question:answer\nq:a\nr:b\n", "separated by ':'"),
        ("Question ~ Answer\nq~a\nr~b\n", "separated by '~'"),
        ("Our questions, 2026\n\nquestion,answer\nq,a\nr,b\n", "line 3 seems to have the names"),
        ("Report;;\nof May;;\nQuestion;Answer;\nq;a;\nr;b;\n", "line 3 seems to have the names"),
        ('Export\n"question"\t"answer"\nq\ta\nr\tb\n', "line 2 seems to have the names"),
        ("Export\nquestion^answer\nq^a\nr^b\n", "separated by '^'"),
    ],
)
def test_the_hint_finds_the_names(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "my data.csv"
    path.write_text(text)
    with pytest.raises(ToolkitError) as caught:
        find_columns(read_table(path, wanted_names(DataSettings())), DataSettings())
    assert said in caught.value.hint
    table = follow(caught.value.hint)
    columns = find_columns(table, DataSettings())
    assert [row.values[columns.answer][:1] for row in table.rows] == ["a", "b"]


@pytest.mark.parametrize("kind", ["json", "jsonl"])
def test_a_number_or_nesting_that_no_row_has_is_named_with_what_to_do(tmp_path: Path, kind: str) -> None:
    path = tmp_path / f"x.{kind}"
    for value, said in (("1" * 5000, "in quotes"), ("[" * 200 + "]" * 200, "as text")):
        path.write_text(
            f'{{"question": "q", "answer": "a", "more": {value}}}\n' + '{"question": "r"}' * (kind == "jsonl")
        )
        error = refusal(path)
        assert "`more` is" in error.message and said in error.hint and "JSONL" not in error.hint


@pytest.mark.parametrize(
    ("name", "members", "said", "hint"),
    [
        ("Verified Q_A.xlsx", {"xl/workbook.xml": b"<x/>"}, "an Excel file", "save its sheet as CSV"),
        ("x.csv", {"xl/workbook.xml": b"<x/>"}, "an Excel file", "save its sheet as CSV"),
        ("x.parquet", {"xl/workbook.xml": b"<x/>"}, "an Excel file", "save its sheet as CSV"),
        ("x.ods", {"mimetype": b"x", "content.xml": b"<x/>"}, "an OpenDocument file", "save its sheet as CSV"),
        ("x.docx", {"word/document.xml": b"<x/>"}, "a Word file", "question,answer"),
    ],
)
def test_office_files_are_known(tmp_path: Path, name: str, members: dict[str, bytes], said: str, hint: str) -> None:
    error = refusal(zipped(tmp_path / name, members))
    assert said in error.message and hint in error.hint and ".parquet" not in error.hint


@pytest.mark.parametrize(
    ("start", "said"),
    [
        (b"\x28\xb5\x2f\xfd", "a Zstandard file"),
        (b"\xd0\xcf\x11\xe0", "an old Excel or Word file"),
        (b"%PDF-1.7", "a PDF"),
        (b"{\\rtf1", "a rich text file"),
        (b"SQLite format 3\0", "an SQLite database"),
        (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    ],
)
@pytest.mark.parametrize("name", ["x", "x.csv", "x.json"])
def test_other_files_are_named(tmp_path: Path, start: bytes, said: str, name: str) -> None:
    (tmp_path / name).write_bytes(start + b" rest of it" * 20)
    error = refusal(tmp_path / name)
    assert said in error.message and "give it the extension" not in error.hint


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", FOREIGN),
        ("utf-16", FOREIGN),
        ("utf-16-le", FOREIGN),
        ("utf-16-be", FOREIGN),
        ("utf-32", FOREIGN),
        ("cp1251", "question,answer\n" + "Что помогает от кашля?,Отдых и вода\n" * 6),
        ("gb18030", "question,answer\n" + "咳嗽怎么办？,多喝水，休息。\n" * 6),
        ("cp949", "question,answer\n" + "기침에 도움이 되는 것은?,물을 마시세요\n" * 6),
        ("mac_roman", FOREIGN),
        ("cp850", FOREIGN),
        ("shift_jis", JAPANESE),
        ("euc_jp", JAPANESE),
        ("iso2022_jp", JAPANESE),
        ("utf-16-le", JAPANESE),
        ("utf-16-be", JAPANESE),
        ("utf-32-le", JAPANESE),
        ("koi8_r", "question,answer\n" + "Что помогает от кашля?,Отдых и вода\n" * 6),
        ("cp1250", "question,answer\n" + "Co pomaga na kaszel?,Świeże powietrze i dużo snu\n" * 6),
        ("cp1254", "question,answer\n" + "Öksürüğe ne iyi gelir?,Dinlenmek ve ılık su\n" * 6),
    ],
)
def test_the_hint_converts_the_encoding(tmp_path: Path, encoding: str, text: str) -> None:
    path = tmp_path / "dados médicos.csv"
    path.write_bytes(text.encode(encoding))
    error = refusal(path)
    assert "not UTF-8" in error.message
    table = follow(error.hint)
    columns = find_columns(table, DataSettings())
    assert f"{table.rows[0].values[columns.question or '']},{table.rows[0].values[columns.answer]}" in text


def test_a_few_lines_of_another_encoding(tmp_path: Path) -> None:
    path = tmp_path / "few.csv"
    path.write_bytes(b"question,answer\nq,a\n" + "É gota?,Não é\n".encode("cp1252"))
    hint = encoding_hint(path, io.BytesIO(path.read_bytes()))
    assert "line 3 reads `É gota?,Não é`" in hint
    assert follow(hint).rows[1].values == {"question": "É gota?", "answer": "Não é"}


def test_two_encodings_that_read_different_words_are_both_named(tmp_path: Path) -> None:
    """Nothing tells a few names in an English text apart but the reader."""
    text = "question,answer\nWhat is it?,Ask the naïve patients at the café in this town\n"
    path = tmp_path / "few.csv"
    path.write_bytes(text.encode("cp1252"))
    hint = encoding_hint(path, io.BytesIO(path.read_bytes()))
    first, second = hint.split("; if ")
    assert "naïve" in first and "naďve" in second
    assert [row.values["answer"] for row in follow(first).rows] == ["Ask the naïve patients at the café in this town"]
    assert "iconv -f WINDOWS-1250" in second and follow(second).rows


def test_bad_lines_among_good_ones_are_named(tmp_path: Path) -> None:
    content = "question,answer\né,é\nà,à\n".encode() + b"\xe9,a\n"
    hint = encoding_hint(tmp_path / "x.csv", io.BytesIO(content))
    assert "line 4" in hint and "iconv" not in hint
