"""What a file's bytes are: text to decode, or a container with what to do about it."""

import codecs
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

from toolkit.core.errors import ToolkitError
from toolkit.prepare.encodings import Reading, find_wide_encoding, guess_encodings

TEXTS = (".csv", ".tsv", ".json", ".jsonl", ".ndjson")
EXTENSIONS = (*TEXTS, ".parquet", ".pq", ".arrow", ".xlsx", ".xlsm")
PLAIN = "it looks like plain text"
BINARY = "it looks like binary data"
MOST_NAMED = 12  # files of a zip that a hint names
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
    b"\xd0\xcf\x11\xe0": ("an old Excel or Word file, or one with a password", _SHEET),
    b"%PDF-": ("a PDF", _BY_HAND),
    b"{\\rtf": ("a rich text file", _BY_HAND),
    b"GGUF": ("a GGUF file", "that is a model: set `data.source` to a file of questions and answers"),
    b"7z\xbc\xaf\x27\x1c": ("a 7z archive", _UNPACK),
    b"Rar!\x1a\x07": ("a RAR archive", _UNPACK),
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
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_RULE = re.compile(rb"^ *\|? *:?-{2,}:? *(?:\| *:?-{2,}:? *)+\|? *\r?$", re.MULTILINE)  # under a table's header
_CONTROL_CHARS = frozenset(chr(code) for code in range(32) if code not in b"\t\n\v\f\r")
_CONTROLS = bytes(code for code in range(32) if code not in b"\t\n\v\f\r")


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
    if len(content[:4096].translate(None, _CONTROLS)) == len(content[:4096]):
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


def iconv(path: Path, encoding: str) -> str:
    """Return the hint that writes a file as UTF-8 by iconv, from an encoding by its name there."""
    return with_fresh_file(f"iconv -f {encoding} -t UTF-8 {quoted(path)}", f"{path.stem}.utf8{path.suffix}")


def decode_text(content: bytes, path: Path, encoding: str = "", *, packed: bool = False) -> str:
    """Decode UTF-8 with or without BOM; raises ToolkitError if the file as a whole is something else.

    One bad line among good ones is that row's problem: its bytes become lone surrogates. `encoding` is that of a text
    that is not UTF-8. Of a `packed` file, the hints have no command for the file itself.
    """
    found, hint = looks_like(content, path)
    known = found not in (PLAIN, BINARY)
    if encoding and not known and not _is_utf8(content):
        return _decode_as(encoding, content, path)
    for mark, name in _MARKS.items():
        if content.startswith(mark):
            said = f"`{path}` is {name}, not UTF-8 (byte order mark at byte 0)"
            raise ToolkitError(said, hint=_to_utf8(path, name, name, packed=packed))
    sample = content[:65536]
    if not known and (wide := find_wide_encoding(sample)):
        said = f"`{path}` is {wide[:6]}, not UTF-8 (NUL at byte {content.index(0)})"
        raise ToolkitError(said, hint=_to_utf8(path, wide, wide, packed=packed))
    if not known and any(sign in content for sign in (b"\x1b$B", b"\x1b$@")):
        hint = _to_utf8(path, "ISO-2022-JP", "ISO-2022-JP", packed=packed)
        raise ToolkitError(f"`{path}` is ISO-2022-JP, not UTF-8", hint=hint)
    controls = len(sample) - len(sample.translate(None, _CONTROLS))
    if known or controls > max(32, len(sample) // 20):
        hint = hint or f"export your records as one of {' '.join(EXTENSIONS)}"
        what = "data" if found.endswith(("page", "XML file")) else "text"
        raise ToolkitError(f"`{path}` is not {what}: {found}", hint=hint)
    try:
        return content.decode("utf-8").lstrip(UNSEEN)
    except UnicodeDecodeError:
        text = content.decode("utf-8", "surrogateescape")
    if bad := _mostly_undecodable(text):
        spot = UNDECODABLE.search(text)
        assert spot is not None
        before = text[: spot.start()].encode("utf-8")
        offset = len(before)
        line_number = before.count(b"\n") + 1
        raise ToolkitError(
            f"`{path}` is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,} (line {line_number:,}), "
            f"and {bad:,} lines like it",
            hint=encoding_hint(path, content, packed=packed),
        )
    return text.lstrip(UNSEEN)


def _is_utf8(content: bytes) -> bool:
    """Say whether a text is surely UTF-8: with its mark, or with letters beyond ASCII that only it has so."""
    if content.startswith(b"\xef\xbb\xbf"):
        return True
    if content.isascii() or 0 in content:
        return False
    try:
        content.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _mostly_undecodable(text: str) -> int:
    """Count the lines with bytes that are no text, where a file, not a row, has another encoding; else 0.

    Few of a foreign encoding's characters beyond ASCII happen to be valid.
    """
    foreign = [line for line in text.split("\n") if not line.isascii()]
    bad = sum(1 for line in foreign if UNDECODABLE.search(line))
    return bad if bad >= MANY and bad * 2 > len(foreign) else 0


def _lone(exc: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are no text to lone surrogates, as `surrogateescape` does for single bytes."""
    if not isinstance(exc, UnicodeDecodeError):
        raise exc
    bad = exc.object[exc.start : exc.end]
    return "".join(chr(0xDC00 + max(byte, 0x80)) for byte in bad), exc.end


codecs.register_error("toolkit.lone", _lone)


def _decode_as(encoding: str, content: bytes, path: Path) -> str:
    """Decode text by the setting data.encoding."""
    try:
        text = content.decode(encoding, "toolkit.lone")
    except (UnicodeError, ValueError) as exc:
        raise _not_named(path, encoding, str(exc)) from None
    sample = text[:65536]
    if sum(char in _CONTROL_CHARS for char in sample) > max(32, len(sample) // 20):
        raise _not_named(path, encoding, "it looks like binary data")
    if bad := _mostly_undecodable(text):
        raise _not_named(path, encoding, f"{bad:,} lines hold bytes that it does not have")
    return text.lstrip(UNSEEN)


def _not_named(path: Path, encoding: str, found: str) -> ToolkitError:
    return ToolkitError(
        f"`{path}` is not {encoding}, which data.encoding names: {found}",
        hint="with `--set data.encoding=` the encoding is looked for, and named where it is found",
    )


def _to_utf8(path: Path, python: str, iconv_name: str, *, packed: bool) -> str:
    setting = f"`--set data.encoding={python}`"
    return setting if packed else f"{setting}, or {iconv(path, iconv_name)}"


def encoding_hint(path: Path, content: bytes, *, packed: bool = False) -> str:
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
        done = _to_utf8(path, reading.python, reading.iconv, packed=packed)
        said.append(f"if line {number:,} reads `{shown}`, the file is {reading.iconv}: {done}")
    return "; ".join(said)


def _telling(lines: dict[int, bytes], readings: list[Reading]) -> tuple[int, bytes]:
    """Return the first line that differs in the encodings, with its number."""
    for number, line in lines.items():
        if len({line.decode(reading.python, "replace") for reading in readings}) == len(readings):
            return number, line
    return next(iter(lines.items()))
