"""Small data files of eleven kinds with random damage, for fuzz_data.py: the same kind and seed give the same file."""

import csv
import functools
import gzip
import io
import json
import random
import re
import zipfile
from collections.abc import Callable
from typing import Any

BASES = 1000  # whole parquet, Arrow and XLSX files to damage: writing one takes longer than reading it
PIECES = [
    *(b'"', b'""', b"\n", b"\r\n", b"\t", b",", b";", b"|", b"{", b"}", b"[", b"]", b"\\", b"\x00", b"\x1b", b"\xff"),
    *(b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\\ud800", b"<", b"&#x0;"),
    *(b"sep=;", b"question", b"answer", b"messages", b"role", b"A1:B9", b"<f>1/0</f>", b"CPF 529.982.247-25"),
]  # fmt: skip
ODD = [
    *("", "N/A", 'a "b" c', "two\nlines", "é ü ß 中文", "=1+1", "007", "1.5", "x" * 300, "<b>bold</b>"),
    "m@example.org",
]
MEMBER = "a.csv"
WORDS = b"0123456789aAbBnrstxyz"
SHEET, TEXTS = "xl/worksheets/sheet1.xml", "xl/sharedStrings.xml"
_TEXT = re.compile(rb't="inlineStr"><is>(.*?)</is>', re.DOTALL)


def rows(chance: random.Random) -> list[dict[str, Any]]:
    """Return a few rows, some of them odd."""
    return [
        {
            "question": f"what is {chance.randrange(50)}? {chance.choice(ODD)}",
            "answer": f"{chance.choice(ODD)} {number}",
        }
        for number in range(chance.randint(1, 12))
    ]


def delimited(mark: str, chance: random.Random) -> bytes:
    """Return delimited text."""
    out = io.StringIO()
    writer = csv.DictWriter(out, ["question", "answer"], delimiter=mark)
    writer.writeheader()
    writer.writerows(rows(chance))
    return out.getvalue().encode()


def lines(chance: random.Random) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(chance)).encode()


def chats(chance: random.Random) -> bytes:
    """Return chats as JSON lines: two of three in turns, one with any roles."""
    user, answers, who, text, name = chance.choice(
        (("user", "assistant", "role", "content", "messages"), ("human", "gpt", "from", "value", "conversations"))
    )
    roles = ("system", "tool", "user", "assistant", "human", "gpt")
    found = []
    for _ in range(chance.randint(1, 6)):
        cells = [cell for row in rows(chance)[:6] for cell in row.values()]
        in_turns = chance.random() < 2 / 3
        said = [(user, answers)[at % 2] if in_turns else chance.choice(roles) for at in range(len(cells))]
        found.append({name: [{who: role, text: cell} for role, cell in zip(said, cells, strict=True)]})
    return "".join(json.dumps(one) + "\n" for one in found).encode()


@functools.lru_cache(2 * BASES)
def columnar(kind: str, number: int) -> bytes:
    """Return a parquet or Arrow file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table, out = pa.Table.from_pylist(rows(random.Random(f"{kind} {number}"))), pa.BufferOutputStream()
    if kind == "parquet":
        pq.write_table(table, out)
    else:
        with pa.ipc.new_file(out, table.schema) as writer:
            writer.write_table(table)
    return bytes(out.getvalue().to_pybytes())


@functools.lru_cache(BASES)
def workbook_parts(number: int) -> dict[str, bytes]:
    """Return the parts of an XLSX file."""
    import openpyxl

    chance = random.Random(f"xlsx {number}")
    book, out = openpyxl.Workbook(), io.BytesIO()
    for line, row in enumerate([{"q": "question", "a": "answer"}, *rows(chance)]):
        book.active.append([*row.values(), line])
    if chance.random() < 0.3:
        book.active.merge_cells("A2:A3")
    book.save(out)
    with zipfile.ZipFile(out) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    return with_shared_texts(parts) if number % 2 else parts


def with_shared_texts(parts: dict[str, bytes]) -> dict[str, bytes]:
    """Move a sheet's texts into a part of their own, where Excel has them; openpyxl leaves them in the sheet."""
    texts = _TEXT.findall(parts[SHEET])
    counter = iter(range(len(texts)))
    sheet = _TEXT.sub(lambda _: b't="s"><v>%d</v>' % next(counter), parts[SHEET])
    shared = b"".join(b"<si>%s</si>" % text for text in texts)
    main = b"http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    kind = b"application/vnd.openxmlformats-officedocument.spreadsheetml.sharedStrings+xml"
    entry = b'<Override PartName="/%s" ContentType="%s" />' % (TEXTS.encode(), kind)
    types = "[Content_Types].xml"
    return {
        **parts,
        SHEET: sheet,
        TEXTS: b'<sst xmlns="%s" count="%d">%s</sst>' % (main, len(texts), shared),
        types: parts[types].replace(b"</Types>", entry + b"</Types>"),
    }


def workbook(chance: random.Random) -> bytes:
    """Return an XLSX file, whose parts are damaged and zipped again: damage to the zip itself is seen at once."""
    parts = dict(workbook_parts(chance.randrange(BASES)))
    name = chance.choice(sorted(name for name in parts if name.endswith((".xml", ".rels"))))
    if chance.random() < 0.3:  # where the rows are
        name = chance.choice([name for name in (SHEET, TEXTS) if name in parts])
    parts[name] = damaged(parts[name], chance)
    return zipped(parts)


def zipped(parts: dict[str, bytes]) -> bytes:
    """Return a zip of files."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return out.getvalue()


def packed(pack: Callable[[bytes], bytes], chance: random.Random) -> bytes:
    """Return a packed CSV file: what is inside is damaged, or, of one in twelve, the outside."""
    content = delimited(",", chance)
    if chance.random() < 1 / 12:
        return damaged(pack(content), chance)
    return pack(damaged(content, chance))


KINDS: dict[str, Callable[[random.Random], bytes]] = {
    "csv": lambda chance: damaged(delimited(",", chance), chance),
    "tsv": lambda chance: damaged(delimited("\t", chance), chance),
    "txt": lambda chance: damaged(delimited("|", chance), chance),
    "json": lambda chance: damaged(json.dumps(rows(chance), indent=chance.choice((None, 1))).encode(), chance),
    "jsonl": lambda chance: damaged(lines(chance), chance),
    "chats.jsonl": lambda chance: damaged(chats(chance), chance),
    "parquet": lambda chance: damaged(columnar("parquet", chance.randrange(BASES)), chance),
    "arrow": lambda chance: damaged(columnar("arrow", chance.randrange(BASES)), chance),
    "xlsx": workbook,
    "csv.gz": lambda chance: packed(functools.partial(gzip.compress, compresslevel=1, mtime=0), chance),
    "zip": lambda chance: packed(lambda content: zipped({MEMBER: content}), chance),
}


def damaged_file(kind: str, seed: int) -> bytes:
    """Return the file of a kind and a seed."""
    return KINDS[kind](random.Random(f"{kind}{seed}"))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Damage a file's content in one to four places.

    Letters and digits that become others leave the form whole, so that what they say is wrong.
    """
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 64)))
        way = chance.randrange(9)
        if way == 0:
            data[at:end] = chance.randbytes(end - at)
        elif way == 1:
            del data[at:end]
        elif way == 2:
            data[at:at] = data[at:end] * chance.choice((1, 2, 20))
        elif way == 3:
            data[at:at] = chance.choice(PIECES)
        elif way == 4:
            data[at:end] = chance.choice(PIECES)
        elif way == 5:
            if chance.random() < 0.3:
                del data[at:]
        elif chr(data[at] if at < len(data) else 0).isalnum():
            data[at] = chance.choice(WORDS)
    return bytes(data)
