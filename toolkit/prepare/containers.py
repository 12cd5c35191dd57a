"""What a file's bytes are: text to decode, or a container with what to do about it."""

import io
import lzma
import re
import shlex
import tarfile
import zipfile
import zlib
from pathlib import Path

from toolkit.core.errors import ToolkitError
from toolkit.prepare.encodings import Reading, find_wide_encoding, guess_encodings

EXTENSIONS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson", ".parquet", ".pq")
PLAIN = "it looks like plain text"
BINARY = "it looks like binary data"
MANY = 5  # undecodable lines from which a file, not a row, has the wrong encoding
MOST_LINES = 200  # of these, from which the encoding is guessed
UNSEEN = "\ufeff\u200b\u2060"  # marks at the start of a text, which some programs write twice
UNDECODABLE = re.compile("[\udc80-\udcff]")  # what a byte that is not UTF-8 is decoded to

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
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file", _SHEET),
    b"%PDF-": ("a PDF", _BY_HAND),
    b"{\\rtf": ("a rich text file", _BY_HAND),
    b"GGUF": ("a GGUF file", "that is a model: set `data.source` to a file of questions and answers"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
    b"SQLite format 3\0": ("an SQLite database", "export its table as CSV, for example with `sqlite3 -header -csv`"),
}
# Signature → what it is, and the Python that reads its table.
_ARROW = {
    b"ARROW1": ("an Arrow file", "f.read_table({0!r})"),
    b"\xff\xff\xff\xff": ("an Arrow file of the datasets library", "i.open_stream({0!r}).read_all()"),
    b"FEA1": ("an old Feather file", "f.read_table({0!r})"),
}
# Members of a zip, by which its programs are known, and the programs' own extensions.
_INSIDE = {
    "xl/": ("an Excel file", _SHEET),
    "word/": ("a Word file", _BY_HAND),
    "ppt/": ("a PowerPoint file", _BY_HAND),
    "content.xml": ("an OpenDocument file", _SHEET),
}
_OFFICE = {".xlsx": "xl/", ".xlsm": "xl/", ".docx": "word/", ".ods": "content.xml"}
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_RULE = re.compile(rb"^ *\|? *:?-{2,}:? *(?:\| *:?-{2,}:? *)+\|? *\r?$", re.MULTILINE)  # under a table's header
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")


def looks_like(content: bytes, path: Path) -> tuple[str, str]:
    """Say what a file looks like, and what to do to read its rows; the latter is empty for text and parquet."""
    for signature, (name, command) in _COMPRESSED.items():
        if content.startswith(signature):
            inner = path.with_suffix("").name if path.suffix.lower() not in EXTENSIONS else path.name
            if inner.lower().endswith(".tar") or path.suffix.lower() in (".tgz", ".tbz", ".txz"):
                return f"it looks like {name}", _untar(path)
            return f"it looks like {name}", with_fresh_file(f"{command} {quoted(path)}", inner)
    if content.startswith(b"PK\x03\x04"):
        name, hint = _zip(content, path)
        return f"it looks like {name}", hint
    for signature, (name, hint) in _OTHERS.items():
        if content.startswith(signature):
            return f"it looks like {name}", hint
    for signature, (name, code) in _ARROW.items():
        if content.startswith(signature):
            target = _fresh(f"{path.stem}.parquet")
            modules = "import pyarrow.feather as f, pyarrow.ipc as i, pyarrow.parquet as p"
            code = f"{modules}; p.write_table({code.format(str(path))}, {str(target)!r})"
            command = f"python -c {shlex.quote(code)}"
            return f"it looks like {name}", f"`{command}`, then `--set {quoted(f'data.source={target}')}`"
    if content[:4] == b"PAR1":
        return "it looks like parquet", ""
    if content[257:262] == b"ustar":
        return "it looks like a tar archive", _untar(path)
    if path.suffix.lower() in (".md", ".markdown"):
        table = _RULE.search(content) is not None
        rows = with_fresh_file(f"grep '|' {quoted(path)}", f"{path.stem}.csv")
        return "it looks like a Markdown file", f"its table alone can be read: {rows}" if table else _BY_HAND
    start = content[:512].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith((b"<!doctype", b"<html", b"<table")):
        return "it looks like an HTML page", "download the file itself, or copy the page's table into a CSV file"
    if start.startswith(b"<?xml"):
        return "it looks like an XML file", f"export your records as one of {' '.join(EXTENSIONS)}"
    if len(content[:4096].translate(None, _CONTROLS)) == len(content[:4096]):
        return PLAIN, ""
    return BINARY, f"export your records as one of {' '.join(EXTENSIONS)}"


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
    target = _fresh("unpacked")
    source = target / (data[0] if len(data) == 1 else "FILE")
    unpack = f"python -m zipfile -e {quoted(path)} {quoted(target)}"
    return "a zip file", f"`{unpack}`, then `--set {quoted(f'data.source={source}')}`"


def quoted(path: Path | str) -> str:
    """Quote a path for a shell, as hints show it."""
    return shlex.quote(str(path))


def _untar(path: Path) -> str:
    """Name the one data file inside, where the archive can be read and has one."""
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


def iconv(path: Path, encoding: str) -> str:
    """Return the hint that writes a file as UTF-8 by iconv, from an encoding by its name there."""
    return with_fresh_file(f"iconv -f {encoding} -t UTF-8 {quoted(path)}", f"{path.stem}.utf8{path.suffix}")


def decode_text(content: bytes, path: Path) -> str:
    """Decode UTF-8 with or without BOM; raises ToolkitError if the file as a whole is something else.

    One bad line among good ones is that row's problem: its bytes become lone surrogates.
    """
    for mark, encoding in _MARKS.items():
        if content.startswith(mark):
            raise ToolkitError(
                f"`{path}` is {encoding}, not UTF-8 (byte order mark at byte 0)", hint=iconv(path, encoding)
            )
    sample = content[:65536]
    found, hint = looks_like(content, path)
    known = found not in (PLAIN, BINARY)
    if not known and (wide := find_wide_encoding(sample)):
        raise ToolkitError(
            f"`{path}` is {wide[:6]}, not UTF-8 (NUL at byte {content.index(0)})", hint=iconv(path, wide)
        )
    if not known and any(sign in content for sign in (b"\x1b$B", b"\x1b$@")):
        raise ToolkitError(f"`{path}` is ISO-2022-JP, not UTF-8", hint=iconv(path, "ISO-2022-JP"))
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if known or controls > max(32, len(sample) // 20):
        hint = hint or f"give it the extension .parquet, or export your records as one of {' '.join(EXTENSIONS)}"
        what = "data" if found.endswith(("page", "XML file")) else "text"
        raise ToolkitError(f"`{path}` is not {what}: {found}", hint=hint)
    try:
        return content.decode("utf-8").lstrip(UNSEEN)
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")
    # A file in another encoding is recognisable: few of its characters beyond ASCII happen to be valid UTF-8.
    foreign = [line for line in text.split("\n") if not line.isascii()]
    bad = sum(1 for line in foreign if UNDECODABLE.search(line))
    if bad >= MANY and bad * 2 > len(foreign):
        spot = UNDECODABLE.search(text)
        assert spot is not None
        before = text[: spot.start()].encode("utf-8")
        offset = len(before)
        line_number = before.count(b"\n") + 1
        raise ToolkitError(
            f"`{path}` is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,} (line {line_number:,}), "
            f"and {bad:,} lines like it",
            hint=encoding_hint(path, content),
        )
    return text.lstrip(UNSEEN)


def encoding_hint(path: Path, content: bytes) -> str:
    """Return what to do about a file with bytes that are not UTF-8: name its encoding, or the lines to correct."""
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    foreign = {number: line for number, line in enumerate(lines, start=1) if not line.isascii()}
    bad = {
        number: line for number, line in foreign.items() if UNDECODABLE.search(line.decode("utf-8", "surrogateescape"))
    }
    if len(bad) * 2 <= len(foreign):  # read in another encoding, the good lines would be spoiled
        numbers = ", ".join(f"{number:,}" for number in list(bad)[:8])
        return f"type the text of line {numbers} again in an editor, and save the file as UTF-8"
    readings = guess_encodings(list(bad.values())[:MOST_LINES])
    said = []
    for reading in readings:
        number, line = _telling(bad, readings)
        shown = " ".join(line.decode(reading.python, "replace").split())[:60]
        said.append(f"if line {number:,} reads `{shown}`, the file is {reading.iconv}: {iconv(path, reading.iconv)}")
    return "; ".join(said)


def _telling(lines: dict[int, bytes], readings: list[Reading]) -> tuple[int, bytes]:
    """Return the first line that differs in the encodings, with its number."""
    for number, line in lines.items():
        if len({line.decode(reading.python, "replace") for reading in readings}) == len(readings):
            return number, line
    return next(iter(lines.items()))
