"""Data files with random damage: every one is read or refused in one line, within seconds, and no row is lost.

    python benchmarks/fuzz_data.py [--files 1000] [--formats csv,xlsx] [--seed 0]

Of every format that many files: a small whole file, in which bytes are changed, cut out, doubled, or replaced by what
such files are known to break on. One in ten is looked at for personal data as well. A failure is named by its format
and seed, and written to fuzzed/ in the current folder. Exit code 1 if there is any. The same seed gives the same file.
"""

import argparse
import contextlib
import gzip
import io
import json
import random
import signal
import sys
import tempfile
import time
import traceback
import unicodedata
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from toolkit.core.config_file import build
from toolkit.core.errors import ToolkitError
from toolkit.core.streams import printable, visible
from toolkit.prepare.division import read_rows
from toolkit.prepare.personal.analyzer import finder
from toolkit.prepare.source import Source

LIMIT = 20  # seconds for a file
PIECES = [
    *(b'"', b'""', b"\n", b"\r\n", b"\t", b",", b";", b"|", b"{", b"}", b"[", b"]", b"\\", b"\x00", b"\x1b", b"\xff"),
    *(b"null", b"NaN", b"-1", b"1e999", b"9" * 400, b"\xf0\x9f\x98\x80", b"\xed\xa0\x80", b"\\ud800", b"<", b"&#x0;"),
    *(b"sep=;", b"question", b"answer", b"messages", b"role", b"A1:B9", b"<f>1/0</f>", b"CPF 529.982.247-25"),
]  # fmt: skip


def rows(chance: random.Random) -> list[dict[str, Any]]:
    """Return a few rows, some of them odd."""
    odd = [
        "",
        "N/A",
        'a "b" c',
        "two\nlines",
        "é ü ß 中文",
        "=1+1",
        "007",
        "1.5",
        "x" * 300,
        "<b>bold</b>",
        "m@example.org",
    ]
    return [
        {
            "question": f"what is {chance.randrange(50)}? {chance.choice(odd)}",
            "answer": f"{chance.choice(odd)} {number}",
        }
        for number in range(chance.randint(1, 12))
    ]


def delimited(mark: str) -> Callable[[random.Random], bytes]:
    """Return a writer of delimited text."""

    def write(chance: random.Random) -> bytes:
        import csv

        out = io.StringIO()
        writer = csv.DictWriter(out, ["question", "answer"], delimiter=mark)
        writer.writeheader()
        writer.writerows(rows(chance))
        return out.getvalue().encode()

    return write


def lines(chance: random.Random) -> bytes:
    """Return JSON lines."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows(chance)).encode()


def chats(chance: random.Random) -> bytes:
    """Return chats as JSON lines."""
    roles = ("system", "user", "assistant", "tool", "human", "gpt")
    forms = (("messages", "role", "content"), ("conversations", "from", "value"))
    name, who, text = chance.choice(forms)
    return "".join(
        json.dumps({name: [{who: chance.choice(roles), text: cell} for row in rows(chance) for cell in row.values()]})
        + "\n"
        for _ in range(chance.randint(1, 6))
    ).encode()


def columnar(kind: str) -> Callable[[random.Random], bytes]:
    """Return a writer of parquet or Arrow files."""

    def write(chance: random.Random) -> bytes:
        import pyarrow as pa
        import pyarrow.parquet as pq

        table, out = pa.Table.from_pylist(rows(chance)), pa.BufferOutputStream()
        if kind == "parquet":
            pq.write_table(table, out)
        else:
            with pa.ipc.new_file(out, table.schema) as writer:
                writer.write_table(table)
        return bytes(out.getvalue().to_pybytes())

    return write


def workbook(chance: random.Random) -> bytes:
    """Return an XLSX file, whose parts are damaged and zipped again: damage to the zip itself is seen at once."""
    import openpyxl

    book, out = openpyxl.Workbook(), io.BytesIO()
    for number, row in enumerate([{"q": "question", "a": "answer"}, *rows(chance)]):
        book.active.append([*row.values(), number])
    if chance.random() < 0.3:
        book.active.merge_cells("A2:A3")
    book.save(out)
    with zipfile.ZipFile(out) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    name = chance.choice(sorted(name for name in parts if name.endswith((".xml", ".rels"))))
    parts[name] = damaged(parts[name], chance)
    again = io.BytesIO()
    with zipfile.ZipFile(again, "w", zipfile.ZIP_DEFLATED) as archive:
        for part, content in parts.items():
            archive.writestr(part, content)
    return again.getvalue()


def zipped(chance: random.Random) -> bytes:
    """Return a zip with a damaged CSV file."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.csv", damaged(delimited(",")(chance), chance))
    return out.getvalue()


FORMATS: dict[str, Callable[[random.Random], bytes]] = {
    "csv": delimited(","),
    "tsv": delimited("\t"),
    "txt": delimited("|"),
    "json": lambda chance: json.dumps(rows(chance), indent=chance.choice((None, 1))).encode(),
    "jsonl": lines,
    "chats.jsonl": chats,
    "parquet": columnar("parquet"),
    "arrow": columnar("arrow"),
    "xlsx": workbook,
    "csv.gz": lambda chance: gzip.compress(damaged(delimited(",")(chance), chance)),
    "zip": zipped,
}


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Damage a file's content in one to four places."""
    data = bytearray(content)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(data) + 1)
        end = min(len(data), at + chance.choice((1, 1, 2, 8, 64)))
        way = chance.randrange(6)
        if way == 0:
            data[at:end] = bytes(chance.randrange(256) for _ in range(end - at))
        elif way == 1:
            del data[at:end]
        elif way == 2:
            data[at:at] = data[at:end] * chance.choice((1, 2, 20))
        elif way == 3:
            data[at:at] = chance.choice(PIECES)
        elif way == 4:
            data[at:end] = chance.choice(PIECES)
        elif chance.random() < 0.3:
            del data[at:]
    return bytes(data)


def failure(path: Path, seed: int) -> str:
    """Read a file; return what is wrong with how it was read or refused, "" if nothing."""
    config = build({}, [f"data.personal={'warn' if seed % 10 == 0 else 'off'}"])
    signal.alarm(LIMIT)
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            found = read_rows([Source(path)], config)
    except ToolkitError as exc:
        said = visible(printable(f"{exc.message} {exc.hint}"))
        whole = exc.hint and all(unicodedata.category(char) != "Cc" or char == "\t" for char in said)
        return "" if whole else f"not one printable line with a hint: {said!r}"
    except BaseException:
        return traceback.format_exc()
    finally:
        signal.alarm(0)
    kept, refused = len(found.records), len(found.rejected)
    return "" if kept + refused == found.count else f"{found.count} rows, but {kept} kept and {refused} rejected"


def main() -> None:
    """Fuzz one format after the other and print a line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="of each format (default 1000)")
    parser.add_argument("--formats", default=",".join(FORMATS))
    parser.add_argument("--seed", type=int, default=0, help="the first one")
    arguments = parser.parse_args()
    signal.signal(signal.SIGALRM, lambda *_: (_ for _ in ()).throw(TimeoutError(f"more than {LIMIT} s")))
    finder("")("m@example.org")  # loads Presidio, which is no part of a file's seconds
    failed = False
    print(f"{'format':<12}{'files':>9}{'failed':>8}{'seconds':>9}")
    for name in arguments.formats.split(","):
        started, wrong = time.perf_counter(), 0
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / f"mine.{name}"
            for seed in range(arguments.seed, arguments.seed + arguments.files):
                chance = random.Random(f"{name}{seed}")
                content = FORMATS[name](chance)
                path.write_bytes(damaged(content, chance) if name not in ("xlsx", "csv.gz", "zip") else content)
                if said := failure(path, seed):
                    wrong += 1
                    kept = Path("fuzzed") / f"{seed}.{name}"
                    kept.parent.mkdir(exist_ok=True)
                    kept.write_bytes(path.read_bytes())
                    print(f"  {name}, seed {seed}: {said.strip().splitlines()[-1]}", flush=True)
        failed = failed or bool(wrong)
        print(f"{name:<12}{arguments.files:>9,}{wrong:>8,}{time.perf_counter() - started:>9.0f}", flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
