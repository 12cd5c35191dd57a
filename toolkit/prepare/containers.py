"""What a file's bytes are: text to decode, or a container, with a hint on how to read it."""

import io
import json
import lzma
import re
import shlex
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

TEXTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
EXTENSIONS = (*TEXTS, ".parquet", ".pq", ".arrow", ".xlsx", ".xlsm")
PLAIN = "it looks like plain text"
BINARY = "it looks like binary data"
MOST_NAMED = 12  # files of a zip that a hint names

_COMPRESSED = {
    b"\x1f\x8b": ("a gzip file", "gunzip -c"),
    b"\x28\xb5\x2f\xfd": ("a Zstandard file", "zstd -dc"),
    b"BZh91AY&SY": ("a bzip2 file", "bunzip2 -c"),
    b"\xfd7zXZ\0": ("an xz file", "xz -dc"),
    b"\x04\x22\x4d\x18": ("an lz4 file", "lz4 -dc"),
}
_SHEET = "save its sheet as CSV (Excel: `CSV UTF-8`; LibreOffice: `Text CSV`, UTF-8) and set `data.source` to that file"
_BY_HAND = "write the questions and answers into a CSV file with a first line `question,answer`"
_UNPACK = "unpack it and set `data.source` to the data file inside"
# Signature → what it is and what to do.
_OTHERS = {
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file, or one with a password", _SHEET),
    b"%PDF-": ("a PDF", _BY_HAND),
    b"{\\rtf": ("a rich text file", _BY_HAND),
    b"GGUF": ("a GGUF file", "that is a model: set `data.source` to a file of questions and answers"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"version https://git-lfs.github.com/spec/": (
        "a Git LFS pointer, which stands for the data",
        "fetch the data itself: `git lfs pull` in the folder of that repository, or download the file from its page",
    ),
    b"SQLite format 3\0": ("an SQLite database", "export its table as CSV, for example with `sqlite3 -header -csv`"),
}
# Members of a zip, by which its programs are known, and the programs' own extensions.
_INSIDE = {
    "xl/": ("an Excel file", _SHEET),
    "word/": ("a Word file", _BY_HAND),
    "ppt/": ("a PowerPoint file", _BY_HAND),
    "content.xml": ("an OpenDocument file", _SHEET),
}
_OFFICE = {".xlsx": "xl/", ".xlsm": "xl/", ".docx": "word/", ".ods": "content.xml"}
_RULE = re.compile(rb"^ *(?:\| *)?:?-{2,}:? *(?:\| *:?-{2,}:? *)+(?:\| *)?\r?$", re.MULTILINE)  # under the header
CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")


def looks_like(content: bytes, path: Path) -> tuple[str, str]:
    """Say what a file looks like, and what to do to read its rows; the latter is empty for text and parquet."""
    for signature, (name, command) in _COMPRESSED.items():
        if content.startswith(signature):
            inner = path.with_suffix("").name if path.suffix.lower() not in EXTENSIONS else path.name
            if inner.lower().endswith(".tar") or path.suffix.lower() in (".tgz", ".tbz", ".txz"):
                return f"it looks like {name}", untar(path)
            return f"it looks like {name}", with_fresh_file(f"{command} {quoted(path)}", inner)
    if content.startswith(b"PK\x03\x04"):
        name, hint = _zip(content, path)
        return f"it looks like {name}", hint
    for signature, (name, hint) in _OTHERS.items():
        if content.startswith(signature):
            return f"it looks like {name}", hint
    if content.startswith(b"FEA1"):
        target = _fresh(f"{path.stem}.parquet")
        code = "import pyarrow.feather as f, pyarrow.parquet as p; "
        code += f"p.write_table(f.read_table({str(path)!r}), {str(target)!r})"
        command = f"python -c {shlex.quote(code)}"
        return "it looks like an old Feather file", f"`{command}`, then `--set {quoted(f'data.source={target}')}`"
    if content[:4] == b"PAR1":
        return "it looks like parquet", ""
    if content[257:262] == b"ustar":
        return "it looks like a tar archive", untar(path)
    if path.suffix.lower() in (".md", ".markdown"):
        table = _RULE.search(content) is not None
        rows = with_fresh_file(f"grep '|' {quoted(path)}", f"{path.stem}.csv")
        return "it looks like a Markdown file", f"its table alone can be read: {rows}" if table else _BY_HAND
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<table")):
        return "it looks like an HTML page", "download the file itself, or copy the page's table into a CSV file"
    if start.startswith(b"<?xml"):
        return "it looks like an XML file", f"export your records as one of {' '.join(EXTENSIONS)}"
    if len(content[:4096].translate(None, CONTROLS)) == len(content[:4096]):
        return PLAIN, ""
    return BINARY, f"export your records as one of {' '.join(EXTENSIONS)}"


def is_office(names: Iterable[str]) -> bool:
    """Say whether a zip with members of these names is a workbook, or a file of another office program."""
    return any(name.startswith(mark) for name in names for mark in _INSIDE)


def _zip(content: bytes, path: Path) -> tuple[str, str]:
    """Say which kind of zip this is, and what to do about it."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        names = [_OFFICE.get(path.suffix.lower(), "")]
    for mark, found in _INSIDE.items():
        if any(name.startswith(mark) for name in names):
            return found
    data = [name for name in names if name.lower().endswith(EXTENSIONS) and not name.startswith("__MACOSX")]
    return "a zip file", unpack_several(path, data or ["FILE"])


def unpack_several(path: Path, names: Sequence[str]) -> str:
    """Return the hint that unpacks a zip into a folder of its own, and uses these of its files as the data."""
    target = _fresh("unpacked")
    inside = [str(target / name) for name in names]
    source = inside[0] if len(inside) == 1 else json.dumps(inside, ensure_ascii=False)
    if len(inside) > MOST_NAMED:
        source = f"{target}/**/*{Path(names[0]).suffix}"
    unpack = f"python -m zipfile -e {quoted(path)} {quoted(target)}"
    return f"`{unpack}`, then `--set {quoted(f'data.source={source}')}`"


def quoted(path: Path | str) -> str:
    """Quote a path for a shell, as hints show it."""
    return shlex.quote(str(path))


def untar(path: Path) -> str:
    """Return the hint that unpacks a tar archive and uses the one data file inside, where it has one."""
    target = _fresh("unpacked")
    unpack = f"`mkdir {quoted(target)} && tar -xf {quoted(path)} -C {quoted(target)}`"
    try:
        with tarfile.open(path) as archive:
            names = [member.name for member in archive if member.isfile()]
    except (tarfile.TarError, OSError, EOFError, ValueError, zlib.error, lzma.LZMAError):
        names = []
    data = [name for name in names if name.lower().endswith(EXTENSIONS)]
    if len(data) != 1:
        return f"{unpack}, then set `data.source` to the data file inside"
    return f"{unpack}, then `--set {quoted(f'data.source={target / data[0]}')}`"


def with_fresh_file(command: str, name: str) -> str:
    """Return the hint that writes a command's output to a new file of about this name, and uses it as the data."""
    target = _fresh(name if Path(name).suffix.lower() in EXTENSIONS else f"{name}.csv")
    return f"`{command} > {quoted(target)}`, then `--set {quoted(f'data.source={target}')}`"


def _fresh(name: str) -> Path:
    """Return a name in the current folder that no file has."""
    path, number = Path(name), 2
    while path.exists():
        path, number = Path(f"{Path(name).stem}-{number}{Path(name).suffix}"), number + 1
    return path
