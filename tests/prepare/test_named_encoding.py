"""`data.encoding`: texts that are not UTF-8 are read by it, those that are stay as they are."""

from pathlib import Path

import pytest

from toolkit.core.config_file import build
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.prepare.clean import NOT_TEXT
from toolkit.prepare.division import Rows, read_rows
from toolkit.prepare.source import find_sources

TEXT = "question,answer\n" + "Não é febre?,É água à mesa\n" * 6
TEXTS = {
    "cp1252": TEXT,
    "utf-16": TEXT,
    "utf-16-le": TEXT,
    "utf-32": TEXT,
    "cp500": TEXT,
    "gb18030": "question,answer\n" + "咳嗽怎么办？,休息和喝水\n" * 6,
    "shift_jis": "question,answer\n" + "咳に効くものは？,休息と水です\n" * 6,
    "iso2022_jp": "question,answer\n" + "咳に効くものは？,休息と水です\n" * 6,
}


def reading(path: Path, encoding: str, *others: Path) -> Rows:
    config = build({"data": {"source": [str(path), *map(str, others)], "encoding": encoding}})
    return read_rows(find_sources(config.data), config)


@pytest.mark.parametrize("encoding", TEXTS)
def test_a_text_is_read_by_its_encoding(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(TEXTS[encoding].encode(encoding))
    rows = reading(path, encoding)
    assert {f"{row.question},{row.answer}" for row in rows.records} == {TEXTS[encoding].split("\n")[1]}


def test_a_utf8_file_beside_it_stays_utf8(tmp_path: Path) -> None:
    for name, content in (("a", TEXT.encode("cp1252")), ("b", TEXT.encode()), ("c", TEXT.encode("utf-8-sig"))):
        (tmp_path / f"{name}.csv").write_bytes(content)
    rows = reading(tmp_path / "a.csv", "cp1252", tmp_path / "b.csv", tmp_path / "c.csv")
    assert rows.count == 18 and {row.answer for row in rows.records} == {"É água à mesa"}


@pytest.mark.parametrize(("encoding", "bad"), [("cp1252", b"\x81"), ("gb18030", b"\xff\xff"), ("shift_jis", b"\xfd")])
def test_bytes_that_it_does_not_have_are_a_problem_of_their_row(tmp_path: Path, encoding: str, bad: bytes) -> None:
    path = tmp_path / "x.csv"
    text = TEXTS[encoding].encode(encoding)
    path.write_bytes(text + b"q," + bad + b"\n" + text.partition(b"\n")[2])
    rows = reading(path, encoding)
    assert [(one.number, one.reason) for one in rows.rejected] == [(7, NOT_TEXT)] and len(rows.records) == 12


@pytest.mark.parametrize(
    ("encoding", "content", "said"),
    [
        ("ascii", TEXT.encode("cp1252"), "6 lines hold bytes that it does not have"),
        ("cp1252", bytes(range(1, 32)) * 20, "binary data"),
        ("idna", TEXT.encode("cp1252"), "is not idna"),
        ("cp1252", b"%PDF-1.7", "a PDF"),
    ],
)
def test_a_file_in_another_one_is_refused(tmp_path: Path, encoding: str, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    with pytest.raises(ToolkitError) as caught:
        reading(path, encoding)
    assert said in caught.value.message and caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize("name", ["nonsense", "hex", "rot13", "\0", "a" * 99])
def test_what_is_no_encoding_is_refused_as_a_setting(name: str) -> None:
    with pytest.raises(ToolkitError, match="is no encoding of text") as caught:
        build({"data": {"encoding": name}})
    assert caught.value.exit_code == USAGE


def test_the_hint_of_a_refusal_names_the_setting_that_works(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(TEXT.encode("cp1252"))
    with pytest.raises(ToolkitError) as caught:
        reading(path, "")
    assert "`--set data.encoding=cp1252`, or `iconv" in caught.value.hint
    assert len(reading(path, "cp1252").records) == 6
