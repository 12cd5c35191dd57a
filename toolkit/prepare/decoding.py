"""Decode a data file's bytes: UTF-8, the encoding that data.encoding names, or a refusal that names one."""

import codecs
import io
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TextIO

from toolkit.core.errors import ToolkitError
from toolkit.prepare.containers import BINARY, CONTROLS, EXTENSIONS, PLAIN, looks_like, quoted, with_fresh_file
from toolkit.prepare.encodings import Reading, find_wide_encoding, guess_encodings
from toolkit.prepare.packed import PIECE, Opened

MANY = 5  # undecodable lines from which a file, not a row, has the wrong encoding
MOST_LINES = 200  # of these, from which the encoding is guessed
UNSEEN = "\ufeff\u200b\u2060"  # marks at the start of a text, which some programs write twice
UNDECODABLE = re.compile("[\udc80-\udcff]")  # what a byte that is not UTF-8 is decoded to
# UTF-32 first: its little-endian mark begins with UTF-16's.
_MARKS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_JAPANESE = (b"\x1b$B", b"\x1b$@")  # ISO-2022-JP
SAMPLE = 65536  # bytes
_CONTROL_CHARS = frozenset(chr(code) for code in range(32) if code not in b"\t\n\v\f\r")


def iconv(path: Path, encoding: str) -> str:
    """Return the hint that writes a file as UTF-8 by iconv, from an encoding by its name there."""
    return with_fresh_file(f"iconv -f {encoding} -t UTF-8 {quoted(path)}", f"{path.stem}.utf8{path.suffix}")


@dataclass(frozen=True)
class Text:
    """A text that is read as often as is needed, from memory or the disk, without `skipped` characters at its start."""

    content: Opened
    encoding: str = "utf-8"
    errors: str = "surrogateescape"
    skipped: int = 0

    def open(self, ends: str = "") -> TextIO:
        """Return it as a file whose lines have their ends; `ends` as in Python's `newline`."""
        file = io.TextIOWrapper(self.content.stream(), self.encoding, self.errors, ends)
        file.read(self.skipped)
        return file

    def lines(self, ends: str = "") -> Iterator[str]:
        """Yield its lines, with their ends."""
        with self.open(ends) as file:
            yield from file

    def start(self, most: int = SAMPLE) -> str:
        """Return its first characters, all of them where `most` is -1."""
        with self.open() as file:
            return file.read(most)

    def without(self, count: int) -> "Text":
        """Return it without so many characters more at its start."""
        return replace(self, skipped=self.skipped + count)


def open_text(opened: Opened, encoding: str = "") -> Text:
    """Decode UTF-8 with or without BOM; raises ToolkitError if the file as a whole is something else.

    One bad line among good ones is that row's problem: its bytes become lone surrogates. `encoding` is that of a text
    that is not UTF-8.
    """
    path, sample = opened.path, opened.start(SAMPLE)
    found, hint = looks_like(sample, path)
    known = found not in (PLAIN, BINARY)
    valid, foreign, japanese = looked_through(opened)
    if encoding and not known and not (sample.startswith(codecs.BOM_UTF8) or (valid and foreign)):
        return _named(opened, encoding)
    marked = next((name for mark, name in _MARKS.items() if sample.startswith(mark)), "")
    wide = "" if known or marked else find_wide_encoding(sample)
    if name := marked or wide or ("ISO-2022-JP" if japanese and not known else ""):
        place = " (byte order mark at byte 0)" if marked else f" (NUL at byte {sample.index(0)})" if wide else ""
        said = f"`{path}` is {name[:6] if wide else name}, not UTF-8{place}"
        raise ToolkitError(said, hint=_to_utf8(path, name, name, packed=opened.packed))
    controls = len(sample) - len(sample.translate(None, CONTROLS))
    if known or controls > max(32, len(sample) // 20):
        hint = hint or f"export your records as one of {' '.join(EXTENSIONS)}"
        what = "data" if found.endswith(("page", "XML file")) else "text"
        raise ToolkitError(f"`{path}` is not {what}: {found}", hint=hint)
    text = Text(opened)
    if not valid and (bad := _mostly_undecodable(text.lines("\n"))):
        raise _not_utf8(opened, bad)
    return _without_unseen(text)


def looked_through(opened: Opened) -> tuple[bool, bool, bool]:
    """Say whether a text is UTF-8, has letters beyond ASCII and no NUL, and has the signs of ISO-2022-JP."""
    decoder, before = codecs.getincrementaldecoder("utf-8")(), b""
    valid, foreign, nul, japanese = True, False, False, False
    with opened.stream() as file:
        while piece := file.read(PIECE):
            foreign, nul = foreign or not piece.isascii(), nul or 0 in piece
            japanese = japanese or any(sign in before + piece for sign in _JAPANESE)
            valid, before = valid and _decodes(decoder, piece), piece[-2:]
    return valid and _decodes(decoder, b""), foreign and not nul, japanese


def _decodes(decoder: codecs.IncrementalDecoder, piece: bytes) -> bool:
    try:
        decoder.decode(piece, final=not piece)
    except UnicodeDecodeError:
        return False
    return True


def _not_utf8(opened: Opened, bad: int) -> ToolkitError:
    content = opened.content()
    try:
        offset = len(content.decode("utf-8"))
    except UnicodeDecodeError as exc:
        offset = exc.start
    return ToolkitError(
        f"`{opened.path}` is not UTF-8: byte 0x{content[offset]:02x} at offset {offset:,} "
        f"(line {content.count(10, 0, offset) + 1:,}), and {bad:,} lines like it",
        hint=encoding_hint(opened.path, io.BytesIO(content), packed=opened.packed),
    )


def _without_unseen(text: Text) -> Text:
    start = text.start(512)
    return text.without(len(start) - len(start.lstrip(UNSEEN)))


def _mostly_undecodable(lines: Iterable[str]) -> int:
    """Count the lines with bytes that are no text, where a file, not a row, has another encoding; else 0.

    Few of a foreign encoding's characters beyond ASCII happen to be valid.
    """
    foreign = bad = 0
    for line in lines:
        if not line.isascii():
            foreign += 1
            bad += UNDECODABLE.search(line) is not None
    return bad if bad >= MANY and bad * 2 > foreign else 0


def _lone(exc: UnicodeError) -> tuple[str, int]:
    """Decode bytes that are no text to lone surrogates, as `surrogateescape` does for single bytes."""
    if not isinstance(exc, UnicodeDecodeError):
        raise exc
    bad = exc.object[exc.start : exc.end]
    return "".join(chr(0xDC00 + max(byte, 0x80)) for byte in bad), exc.end


codecs.register_error("toolkit.lone", _lone)


def _named(opened: Opened, encoding: str) -> Text:
    """Decode text by the setting data.encoding."""
    name = codecs.lookup(encoding).name
    marks = tuple(mark for mark, marked in _MARKS.items() if marked.lower() == name)
    if marks and not opened.start(4).startswith(marks):
        encoding = f"{name}-{sys.byteorder[0]}e"  # as Python reads it where no mark says which
    text, path = Text(opened, encoding, "toolkit.lone"), opened.path
    try:
        sample = text.start()
        bad = _mostly_undecodable(text.lines("\n"))
    except (UnicodeError, ValueError) as exc:
        raise _not_named(path, encoding, str(exc)) from None
    if sum(char in _CONTROL_CHARS for char in sample) > max(32, len(sample) // 20):
        raise _not_named(path, encoding, "it looks like binary data")
    if bad:
        raise _not_named(path, encoding, f"{bad:,} lines hold bytes that it does not have")
    return _without_unseen(text)


def _not_named(path: Path, encoding: str, found: str) -> ToolkitError:
    return ToolkitError(
        f"`{path}` is not {encoding}, which data.encoding names: {found}",
        hint="with `--set data.encoding=` the encoding is looked for, and named where it is found",
    )


def _to_utf8(path: Path, python: str, iconv_name: str, *, packed: bool) -> str:
    setting = f"`--set data.encoding={python}`"
    return setting if packed else f"{setting}, or {iconv(path, iconv_name)}"


def encoding_hint(path: Path, lines: Iterable[bytes], *, packed: bool = False) -> str:
    """Return what to do about lines with bytes that are not UTF-8: name the file's encoding, or those to correct."""
    foreign, bad = 0, {}
    for number, line in enumerate(lines, start=1):
        line = line.removeprefix(codecs.BOM_UTF8 if number == 1 else b"").removesuffix(b"\n")
        if not line.isascii():
            foreign += 1
            if UNDECODABLE.search(line.decode("utf-8", "surrogateescape")):
                bad[number] = line
    if len(bad) * 2 <= foreign:  # read in another encoding, the good lines would be spoiled
        numbers = ", ".join(f"{number:,}" for number in list(bad)[:8])
        return f"type the text of line {numbers} again in an editor, and save the file as UTF-8"
    readings = guess_encodings(list(bad.values())[:MOST_LINES])
    said = []
    for reading in readings:
        number, line = _telling(bad, readings)
        shown = _around_first_letter(line.decode(reading.python, "replace"))
        done = _to_utf8(path, reading.python, reading.iconv, packed=packed)
        said.append(f"if line {number:,} reads `{shown}`, the file is {reading.iconv}: {done}")
    return "; ".join(said)


def _around_first_letter(text: str) -> str:
    """Return 60 characters of a line, the first one that is not ASCII among them: it tells the encoding."""
    text = " ".join(text.split())
    first = next((place for place, letter in enumerate(text) if not letter.isascii()), 0)
    start = max(0, first - 30) if first > 50 else 0
    return f"{'…' if start else ''}{text[start : start + 60]}"


def _telling(lines: dict[int, bytes], readings: list[Reading]) -> tuple[int, bytes]:
    """Return the first line that differs in the encodings, with its number."""
    for number, line in lines.items():
        if len({line.decode(reading.python, "replace") for reading in readings}) == len(readings):
            return number, line
    return next(iter(lines.items()))
