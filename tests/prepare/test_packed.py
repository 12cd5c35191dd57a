"""Packed files: read where they hold one data file, refused by name where they are damaged, several, or a bomb."""

import gzip
import io
import json
import re
import shlex
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.properties import tries
from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.input_settings import DataSettings
from toolkit.prepare import packed
from toolkit.prepare.columns import wanted_names
from toolkit.prepare.read import read_source, read_table
from toolkit.prepare.source import find_sources
from toolkit.prepare.table import Table

CSV = b"question,answer\nq,a\nr,b\n"
JSON = b'[{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}]'
WANTED = wanted_names(DataSettings())


def zstd(content: bytes) -> bytes:
    import pyarrow

    found: bytes = pyarrow.compress(content, codec="zstd", asbytes=True)
    return found


def gzipped(content: bytes) -> bytes:
    """Pack without the time, which would be in the names of the tests, and differ between the processes."""
    return gzip.compress(content, mtime=0)


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_DEFLATED) -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, content in members.items():
            archive.writestr(zipfile.ZipInfo(name), content, compression)
    return file.getvalue()


def arrow(kind: str) -> bytes:
    import pyarrow as pa

    table, file = pa.table({"question": ["q", "r"], "answer": ["a", "b"]}), io.BytesIO()
    with (pa.ipc.new_file if kind == "file" else pa.ipc.new_stream)(file, table.schema) as writer:
        writer.write_table(table)
    return file.getvalue()


def parquet() -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = io.BytesIO()
    pq.write_table(pa.table({"question": ["q", "r"], "answer": ["a", "b"]}), file)
    return file.getvalue()


def read(path: Path, content: bytes) -> Table:
    path.write_bytes(content)
    return read_table(path, WANTED)


def refused(path: Path, content: bytes) -> ToolkitError:
    with pytest.raises(ToolkitError) as caught:
        read(path, content)
    assert str(path) in caught.value.message and "\n" not in caught.value.message and caught.value.hint
    return caught.value


PACKINGS: dict[str, Callable[[str, bytes], bytes]] = {
    ".gz": lambda _, content: gzipped(content),
    ".zst": lambda _, content: zstd(content),
    ".zip": lambda name, content: zipped({name: content}),
}
FORMATS: dict[str, bytes] = {
    "x.csv": CSV,
    "x.tsv": CSV.replace(b",", b"\t"),
    "x.json": JSON,
    "x.jsonl": JSON.strip(b"[]").replace(b"}, ", b"}\n"),
    "x.parquet": parquet(),
    "x.arrow": arrow("file"),
    "stream.arrow": arrow("stream"),
    "no extension": JSON,
}


@pytest.mark.parametrize("packing", ["", *PACKINGS])
@pytest.mark.parametrize("name", FORMATS)
def test_every_format_in_every_packing(tmp_path: Path, name: str, packing: str) -> None:
    content = PACKINGS[packing](name, FORMATS[name]) if packing else FORMATS[name]
    table = read(tmp_path / (name + packing), content)
    assert [tuple(row.values.values()) for row in table.rows] == [("q", "a"), ("r", "b")]
    assert table.whole and [row.number for row in table.rows] == [1, 2]


def test_the_content_counts_not_the_name(tmp_path: Path) -> None:
    for content in (gzipped(CSV), zstd(CSV), zipped({"x.csv": CSV}), parquet(), arrow("stream")):
        assert len(read(tmp_path / "x.csv", content).rows) == 2
    twice = gzipped(CSV[:20]) + gzipped(CSV[20:])  # as logs are appended
    assert len(read(tmp_path / "x.csv.gz", twice).rows) == 2
    assert len(read(tmp_path / "x.csv.zst", zstd(CSV[:20]) + zstd(CSV[20:])).rows) == 2
    assert len(read(tmp_path / "x.zip", zipped({"in/x.csv.gz": gzipped(CSV)})).rows) == 2


def test_what_lies_beside_the_one_data_file_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inside = {"in/x.csv": CSV, "__MACOSX/in/._x.csv": b"\0", "README": b"x", "in/.DS_Store": b"\0", "in/._x.csv": b"\0"}
    assert len(read(tmp_path / "x.zip", zipped(inside)).rows) == 2
    assert "in/x.csv is read, not `README`" in capsys.readouterr().err


def test_several_data_files_are_named_and_the_hint_reads_them_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "work here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    for count in (2, 20):
        path = tmp_path / f"{count} files.zip"
        error = refused(path, zipped({f"in/{n}.csv": CSV for n in range(count)} | {"README": b"x"}))
        assert f"a zip file of {count} data files: `in/0.csv`, `in/1.csv`" in error.message
        command, setting = re.findall(r"`([^`]+)`", error.hint)[-2:]
        subprocess.run(re.sub(r"^python\b", shlex.quote(sys.executable), command), shell=True, check=True)
        data = build({}, [shlex.split(setting)[1]]).data
        tables = [read_source(source, data) for source in find_sources(data)]
        assert [len(table.rows) for table in tables] == [2] * count


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (zipped({}), "holds nothing"),
        (zipped({"a": b"x", "b": b"y"}), "it holds `a`, `b`"),
        (zipped({"a.csv": CSV})[:-30], "is not whole"),
        (zipped({"a.csv": CSV * 50}).replace(b"a.csv", b"b.csv", 1), "is not whole"),
        (gzipped(CSV)[:-9], "a gzip file"),
        (gzipped(CSV)[:-8] + bytes(8), "a gzip file"),
        (zstd(CSV * 99)[:-9], "a Zstandard file"),
        (zstd(CSV) + b"more", "a Zstandard file"),
        (gzipped(b""), "is empty"),
    ],
)
def test_damaged_and_empty_ones_are_refused(tmp_path: Path, content: bytes, said: str) -> None:
    assert said in refused(tmp_path / "x", content).message


def test_a_password_and_an_unknown_compression_are_refused(tmp_path: Path) -> None:
    content = bytearray(zipped({"a.csv": CSV}))
    for place in (6, content.index(b"PK\1\2") + 8):
        content[place] |= 1  # the flag of an encrypted member
    error = refused(tmp_path / "x.zip", bytes(content))
    assert "has a password" in error.message and "ZipInfo" not in error.message
    assert "7z x" in error.hint  # Python's own command for zip files asks for no password
    content = bytearray(zipped({"a.csv": CSV}))
    for place in (8, content.index(b"PK\1\2") + 10):
        content[place] = 97
    assert "cannot be unpacked here" in refused(tmp_path / "x.zip", bytes(content)).message


@pytest.mark.parametrize("mode", ["tgz", "zst"])
def test_a_packed_tar_is_no_data_file(tmp_path: Path, mode: str) -> None:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        info = tarfile.TarInfo("x.csv")
        info.size = len(CSV)
        archive.addfile(info, io.BytesIO(CSV))
    content = gzipped(file.getvalue()) if mode == "tgz" else zstd(file.getvalue())
    error = refused(tmp_path / f"x.{mode}", content)
    assert "a tar archive" in error.message and "tar -xf" in error.hint


BOMB = b"q" * 10**6


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("x.csv.gz", gzipped(BOMB)),
        ("x.csv.zst", zstd(BOMB)),
        ("x.zip", zipped({"x.csv": BOMB})),
        ("x.gz", gzipped(gzipped(BOMB))),
        ("x.xlsx", zipped({"xl/workbook.xml": BOMB})),
        ("x.xlsx", zipped({"xl/workbook.xml": b"", **{f"xl/{n}.xml": BOMB[: 10**5] for n in range(10)}})),
    ],
)
def test_a_bomb_is_refused_while_it_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes
) -> None:
    monkeypatch.setattr(packed, "SMALL", 10**5)
    monkeypatch.setattr(packed, "PIECE", 1000)
    error = refused(tmp_path / name, content)
    assert "unpacks to more than" in error.message and "200 times its size" in error.message
    assert "by hand" in error.hint


def test_a_header_that_lies_about_the_size_is_not_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed, "SMALL", 10**5)
    content = bytearray(zipped({"x.csv": BOMB}))
    for place in (22, content.index(b"PK\1\2") + 24):
        content[place : place + 4] = (10).to_bytes(4, "little")
    assert "not whole" in refused(tmp_path / "x.zip", bytes(content)).message
    monkeypatch.setattr(packed, "LARGEST", 2000)
    assert "unpacks to more than 2.0 kB" in refused(tmp_path / "y.gz", gzipped(b"q" * 3000)).message


def test_only_the_start_of_a_large_one_is_unpacked_for_a_check(tmp_path: Path) -> None:
    path = tmp_path / "x.csv.gz"
    path.write_bytes(gzipped(CSV * 10**5))
    opened = packed.open_data(path, 1000)
    assert opened.data == (CSV * 100)[:1000] and not opened.whole
    path.write_bytes(gzipped(parquet()))
    assert packed.open_data(path, 10).data == parquet()  # its end says how to read it


@settings(max_examples=tries(150), deadline=None)
@given(
    packing=st.sampled_from(list(PACKINGS)),
    name=st.sampled_from(list(FORMATS)),
    place=st.floats(0, 1),
    change=st.sampled_from(["cut", "flip", "insert"]),
)
def test_damage_anywhere_is_read_whole_or_refused(
    tmp_path_factory: pytest.TempPathFactory, packing: str, name: str, place: float, change: str
) -> None:
    """No traceback, no row lost in silence: what is read are both rows, or an error of one line."""
    content = bytearray(PACKINGS[packing](name, FORMATS[name]))
    at = int(place * (len(content) - 1))
    if change == "cut":
        del content[at:]
    elif change == "flip":
        content[at] ^= 0xFF
    else:
        content[at:at] = b"\x00x"
    path = tmp_path_factory.mktemp("damage") / f"{name}{packing}"
    try:
        rows = read(path, bytes(content)).rows
    except ToolkitError as exc:
        assert "\n" not in exc.message and exc.hint
    else:
        if packing != ".zst" or change == "cut":  # a Zstandard file has no checksum unless its writer adds one
            assert json.dumps([list(row.values.values()) for row in rows]) == '[["q", "a"], ["r", "b"]]'


@settings(max_examples=tries(400), deadline=None)
@given(
    name=st.sampled_from(["x.parquet", "x.arrow", "stream.arrow"]),
    changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=4),
)
def test_damaged_arrow_gives_rows_or_one_line(
    tmp_path_factory: pytest.TempPathFactory, name: str, changes: list[tuple[float, int]]
) -> None:
    """Offsets beyond the file would be read from anywhere in the memory, and end the process."""
    content = bytearray(FORMATS[name])
    for place, byte in changes:
        content[int(place * (len(content) - 1))] = byte
    try:
        table = read(tmp_path_factory.mktemp("damage") / name, bytes(content))
    except ToolkitError as exc:
        assert "\n" not in exc.message and exc.hint
    else:
        assert table.rows


@pytest.mark.parametrize("kind", ["text", "dictionary", "nested"])
def test_offsets_beyond_the_text_are_refused(tmp_path: Path, kind: str) -> None:
    import pyarrow as pa

    offsets = pa.py_buffer(b"\0\0\0\0" + b"\0\0\0\x7f" + b"\2\0\0\0")
    far = pa.Array.from_buffers(pa.string(), 2, [None, offsets, pa.py_buffer(b"ab")])
    near = pa.array(["a", "b"])
    column = {
        "text": far,
        "dictionary": pa.DictionaryArray.from_arrays(pa.array([0, 9], pa.int32()), near, safe=False),
        "nested": pa.StructArray.from_arrays([far], ["x"]),
    }[kind]
    file = io.BytesIO()
    table = pa.table({"question": near, "answer": column})
    with pa.ipc.new_stream(file, table.schema) as writer:
        writer.write_table(table)
    assert "read" in refused(tmp_path / "x.arrow", file.getvalue()).message


def test_a_member_without_a_name_is_none(tmp_path: Path) -> None:
    content = zipped({"x.csv": CSV, "y": b""}, zipfile.ZIP_STORED)
    content = content.replace(b"y", b"\0")  # a name ends at a NUL
    assert len(read(tmp_path / "x.zip", content).rows) == 2
