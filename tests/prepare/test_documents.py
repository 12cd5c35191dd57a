"""MedQuAD's XML documents: from a zip, a folder, single files, and its public repository; no pair is lost."""

import hashlib
import io
import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from tests.support.web import serving_bytes
from toolkit.core import console
from toolkit.core.config_file import build
from toolkit.core.errors import MISSING, ToolkitError
from toolkit.core.input_settings import MEDQUAD_FULL
from toolkit.core.run_folder import SPLITS, RunFolder
from toolkit.prepare import checks, medquad, packed, prepare
from toolkit.prepare.division import Rows, read_rows
from toolkit.prepare.medquad import FULL_PLACES
from toolkit.prepare.refusals import hints_for_some, useless
from toolkit.prepare.source import find_sources, locate
from toolkit.prepare.stage import STAGE
from toolkit.prompt.tokenizer import Tokenizer

Pairs = list[tuple[str, str]]


def document(source: str, number: int, pairs: Pairs) -> bytes:
    """A document in MedQuAD's form, made up."""
    inside = "".join(
        f'<QAPair pid="{n}">\n<Question qid="{number:07}-{n}" qtype="information">{question}</Question>\n'
        f"<Answer>{answer}</Answer>\n</QAPair>\n"
        for n, (question, answer) in enumerate(pairs, start=1)
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n'
        f'<Document id="{number:07}" source="{source}" url="https://example.org/{number}">\n<Focus>Fever</Focus>\n'
        f"<FocusAnnotations><UMLS><CUIs><CUI>C1</CUI></CUIs></UMLS></FocusAnnotations>\n"
        f"<QAPairs>\n{inside}</QAPairs>\n</Document>\n"
    ).encode()


COLLECTIONS: dict[str, bytes] = {
    **{
        f"MedQuAD-master/1_Made_QA/{n:07}.xml": document("Made", n, [(f"What is {n}?", f"It is\n   {n} &amp; more.")])
        for n in range(12)
    },
    "MedQuAD-master/2_Empty_QA/0000001.xml": document("Empty", 1, [("Why?", ""), ("How?", "  \n ")]),
    "MedQuAD-master/2_Empty_QA/0000002.xml": document("Empty", 2, []),
    "MedQuAD-master/readme.txt": b"x",
    "MedQuAD-master/QA-TestSet.zip": b"PK",
}


def zipped(members: dict[str, bytes]) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return file.getvalue()


def unpack(members: dict[str, bytes], folder: Path) -> None:
    for name, content in members.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def reading(source: Any) -> Rows:
    config = build({"data": {"source": source}})
    return read_rows(find_sources(config.data), config)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("kind", ["zip", "folder", "glob", "medquad-full", "unpacked"])
def test_every_pair_is_kept_or_rejected_with_its_file(kind: str) -> None:
    source: Any = {"zip": "my.zip", "folder": "MedQuAD-master", "glob": "MedQuAD-master/*/*.xml"}.get(
        kind, "medquad-full"
    )
    if kind == "zip":
        Path("my.zip").write_bytes(zipped(COLLECTIONS))
    elif kind == "medquad-full":
        MEDQUAD_FULL.parent.mkdir(parents=True)
        MEDQUAD_FULL.write_bytes(zipped(COLLECTIONS))
    else:
        unpack(COLLECTIONS, Path() if kind != "unpacked" else MEDQUAD_FULL.parent)
        if kind == "glob":
            Path("MedQuAD-master/2_Empty_QA/0000002.xml").unlink()  # a file without a pair is refused by its name
    rows = reading(source)
    assert rows.count == 14 and len(rows.records) == 12
    assert {one.reason for one in rows.rejected} == {"empty answer"} and len(rows.rejected) == 2
    assert all(one.file.endswith("2_Empty_QA/0000001.xml") for one in rows.rejected)
    record = rows.records[3]
    assert (record.id, record.question, record.answer) == ("Made_0000003-1", "What is 3?", "It is\n   3 & more.")
    assert record.file.endswith("1_Made_QA/0000003.xml")


def test_documents_are_read_in_the_order_of_their_numbers() -> None:
    names = ("2/a9.xml", "2/a010.xml", "10/1.xml", f"10/{'9' * 5000}.xml")
    content = {name: document("Made", at, [(f"What is {at}?", "It is.")]) for at, name in enumerate(names)}
    Path("x.zip").write_bytes(zipped(dict(sorted(content.items()))))
    assert [record.file for record in reading("x.zip").records] == [*names]


@pytest.mark.slow
def test_two_folders_with_documents_of_one_name_are_counted_apart(tokenizer: Tokenizer, tmp_path: Path) -> None:
    unpack({f"{n}.xml": document("Made", n, [(f"What is {n}?", f"It is {n}.")]) for n in range(6)}, Path("full"))
    unpack({f"{n}.xml": document("Empty", n, [(f"Why {n}?", "")]) for n in range(3)}, Path("empty"))
    config = build({"data": {"source": ["full", "empty"]}})
    folder = RunFolder(tmp_path / "exports/x", "x")
    rows = read_rows(find_sources(config.data), config)
    files = prepare(config, folder, find_sources(config.data), tokenizer).figures["files"]
    counted = {name: (figures["rows"], figures["rejected"]) for name, figures in files.items()}
    assert counted == {"full": (6, 0), "empty": (3, 3)}
    assert [one.file for one in rows.rejected] == [f"empty/{n}.xml" for n in range(3)]
    assert useless(rows.tables, rows.rejected) == ["`empty`: none of its 3 rows can be used (empty answer)"]


@pytest.mark.slow
def test_the_doctor_counts_the_bytes_of_a_large_folders_documents() -> None:
    pairs = [(f"What is {n}?", f"It is {n}.") for n in range(1300)]
    unpack({f"{n}.xml": document("Made", n, pairs) for n in range(3)}, Path("large"))
    size = console.size(sum(path.stat().st_size for path in Path("large").iterdir()))
    check = checks.data(build({"data": {"source": "large"}}), lambda: None, offline=True)
    assert check.found.startswith(f"`large`, {size}: 2,500 of its first 2,500 rows are usable")


def test_characters_that_are_no_text_in_a_folder_are_explained() -> None:
    unpack({"1.xml": document("Made", 1, [("What\x7f?", "It is."), ("Why?", "So.")])}, Path("folder"))
    rows = reading("folder")
    assert [one.reason for one in rows.rejected] == ["binary or undecodable text"]
    (hint,) = hints_for_some(rows.tables, rows.rejected)
    assert "control characters" in hint


def test_it_is_prepared_in_one_command(tokenizer: Tokenizer, tmp_path: Path) -> None:
    Path("my.zip").write_bytes(zipped(COLLECTIONS))
    config = build({"data": {"source": "my.zip"}})
    folder = RunFolder(tmp_path / "exports/x", "x")
    assert STAGE.files(config, folder).inputs == [Path("my.zip")]
    figures = prepare(config, folder, find_sources(config.data), tokenizer).figures
    assert (figures["rows"], figures["kept"], figures["reasons"]) == (14, 12, {"empty answer": 2})
    assert figures["source_sha256"] == hashlib.sha256(Path("my.zip").read_bytes()).hexdigest()
    rejected = [json.loads(line) for line in folder.rejected.read_text().splitlines()]
    assert rejected[0] == {
        "file": "MedQuAD-master/2_Empty_QA/0000001.xml",
        "row": 13,
        "reason": "empty answer",
        "text": "Why?",
    }
    assert sum(figures[name] for name in SPLITS) == 12


def test_a_folders_files_are_the_inputs() -> None:
    unpack(COLLECTIONS, Path())
    config = build({"data": {"source": "MedQuAD-master"}})
    assert len(STAGE.files(config, RunFolder(Path("x"), "x")).inputs) == 14


BAD: dict[str, bytes] = {
    "broken": b"<Document><QAPairs><QAPair>",
    "entities": b'<!DOCTYPE d [<!ENTITY a "aa">]>' + document("E", 1, [("q", "&a;")]).partition(b"?>")[2],
    "encoding": b'<?xml version="1.0" encoding="nonsense"?><QAPair/>',
    "binary": b"\0\1\2<QAPair",
}


@pytest.mark.parametrize("name", BAD)
def test_a_document_that_cannot_be_read_is_rejected_by_name(name: str) -> None:
    Path("my.zip").write_bytes(zipped({**COLLECTIONS, "MedQuAD-master/1_Made_QA/bad.xml": BAD[name]}))
    rows = reading("my.zip")
    assert len(rows.records) == 12 and rows.count == 15
    bad = next(one for one in rows.rejected if one.file.endswith("bad.xml"))
    assert bad.reason == "XML that cannot be read" and bad.detail
    Path("bad.xml").write_bytes(BAD[name])
    with pytest.raises(ToolkitError) as caught:
        reading("bad.xml")
    assert "bad.xml" in caught.value.message and caught.value.hint and "\n" not in caught.value.message


@pytest.mark.parametrize(
    "members", [{"a.xml": b"<rows><row/></rows>"}, {"a.xml": b"<a/>", "b.xml": b"<QAPairs></QAPairs>"}]
)
def test_other_xml_is_refused(members: dict[str, bytes]) -> None:
    Path("my.zip").write_bytes(zipped(members))
    unpack(members, Path("folder"))
    for source in ("my.zip", "folder"):
        with pytest.raises(ToolkitError, match=f"`{source}` holds XML without a `<QAPair>`"):
            reading(source)


def test_a_damaged_zip_is_refused() -> None:
    content = bytearray(zipped(COLLECTIONS))
    content[content.index(b"</QAPair") if b"</QAPair" in content else 80] ^= 0xFF
    for damaged in (bytes(content), zipped(COLLECTIONS)[:-40]):
        Path("my.zip").write_bytes(damaged)
        with pytest.raises(ToolkitError, match="is not whole"):
            reading("my.zip")


def test_a_bomb_of_documents_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALL", 10**5)
    long = document("Made", 1, [("q", "a" * 300_000)])
    Path("my.zip").write_bytes(zipped({"a.xml": long, "b.xml": long}))
    with pytest.raises(ToolkitError, match="unpacks to more than"):
        reading("my.zip")


def test_it_is_downloaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    config = build({"data": {"source": "medquad-full"}})
    with serving_bytes({"/full.zip": zipped(COLLECTIONS)}) as url:
        monkeypatch.setattr(medquad, "MEDQUAD_FULL_URL", f"{url}/full.zip")
        monkeypatch.setattr(checks, "MEDQUAD_FULL_URL", f"{url}/full.zip")
        check = checks.data(config, lambda: None, offline=False)
        assert check.ok and "can be downloaded (0.0 MB)" in check.found
        assert [source.path for source in locate(config.data, offline=False)] == [MEDQUAD_FULL]
    assert MEDQUAD_FULL.read_bytes() == zipped(COLLECTIONS)
    assert locate(config.data, offline=True)[0].path == MEDQUAD_FULL
    assert checks.data(config, lambda: None, offline=True).ok is not False


@pytest.mark.parametrize(
    ("body", "said"),
    [(b"<html>", "not a whole zip"), (zipped({"a.csv": b"x"}), "no XML document"), (None, "answers 404")],
)
def test_a_bad_download_leaves_nothing(body: bytes | None, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    config = build({"data": {"source": "medquad-full"}})
    with serving_bytes({} if body is None else {"/full.zip": body}) as url:
        monkeypatch.setattr(medquad, "MEDQUAD_FULL_URL", f"{url}/full.zip")
        with pytest.raises(ToolkitError, match=said) as caught:
            locate(config.data, offline=False)
    assert caught.value.exit_code == MISSING and str(MEDQUAD_FULL) in caught.value.hint
    assert not any(path.exists() for path in FULL_PLACES)


def test_offline_downloads_nothing() -> None:
    config = build({"data": {"source": "medquad-full"}})
    with pytest.raises(ToolkitError, match="--offline forbids"):
        locate(config.data, offline=True)
    with pytest.raises(ToolkitError, match="--offline forbids"):
        checks.data(config, lambda: None, offline=True)
