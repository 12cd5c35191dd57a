"""From MedQuAD's XML documents to rows: a zip or a folder of them, or one file.

Each `<QAPair>` is a row. Three of its collections hold questions alone, because of their copyright: their rows have an
empty answer.
"""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from toolkit.core.errors import ToolkitError
from toolkit.core.spool import Spool
from toolkit.core.streams import printable
from toolkit.prepare.packed import ZIP, Opened, members, open_zip, pieces, unpacking
from toolkit.prepare.table import Row

COLUMNS = ["id", "collection", "focus", "question_type", "question", "answer"]
PAIR = b"<QAPair"
NOT_XML = "XML that cannot be read"

_NUMBER = re.compile("([0-9]+)")


def documents_in(folder: Path) -> list[Path]:
    """Return the XML files in a folder and below, by name and number."""
    return sorted((path for path in folder.rglob("*.xml") if path.is_file()), key=lambda path: _in_order(str(path)))


def _in_order(name: str) -> list[tuple[int, str] | str]:
    """Sort names by their numbers: MedQuAD's collections 10 to 12 have no answers, and come last."""
    parts = _NUMBER.split(name)
    parts[1::2] = [part.lstrip("0") for part in parts[1::2]]  # Python makes no number of more than 4,300 digits
    return [(len(part), part) if at % 2 else part for at, part in enumerate(parts)]


def read_documents(opened: Opened, most: int | None = None) -> tuple[list[str], Sequence[Row], bool]:
    """Return names, rows, and whether these are all, of a folder, a zip or one file: the first `most` where it is set.

    Raises ToolkitError if a zip is broken, or nothing holds a pair.
    """
    rows = Spool[Row]()
    for name, content in _documents(opened):
        if most is not None and len(rows) > most:
            return COLUMNS, rows[:most], False
        rows.extend([*_pairs(name, content, len(rows) + 1)])
    if not any(row.values for row in rows):
        raise ToolkitError(
            f"`{opened.path}` holds XML without a `<QAPair>`, MedQuAD's form of a question with its answer",
            hint="write the questions and answers into a CSV file with a first line `question,answer`",
        )
    return COLUMNS, rows, True


def _documents(opened: Opened) -> Iterator[tuple[str, bytes]]:
    """Yield the name and the content of each document."""
    path, total = opened.path, 0
    if path.is_dir():
        for file in documents_in(path):
            yield printable(file.relative_to(path).as_posix()), file.read_bytes()
    elif not opened.start().startswith(ZIP):
        yield printable(str(path)), opened.content()
    else:
        with opened.stream() as packed, open_zip(packed, path) as archive:
            for item in sorted(members(archive), key=lambda item: _in_order(item.filename)):
                if item.filename.lower().endswith(".xml"):
                    with unpacking(path), archive.open(item) as stream:
                        content = b"".join(pieces(stream, path, total))
                    total += len(content)
                    yield item.filename, content


def _pairs(name: str, content: bytes, first: int) -> Iterator[Row]:
    try:
        if b"<!DOCTYPE" in content or b"<!ENTITY" in content:  # MedQuAD has none, and they may grow without end
            raise ValueError("it defines entities")
        root = ElementTree.fromstring(content)
    except (ElementTree.ParseError, ValueError, LookupError) as exc:
        yield Row(first, None, {}, f"{NOT_XML}: {exc}", name, name)
        return
    source, focus = root.get("source", ""), _text(root.find("Focus"))
    for number, pair in enumerate(root.iter("QAPair"), start=first):
        question = pair.find("Question")
        of_question = {} if question is None else question.attrib
        cells = [
            f"{source}_{of_question.get('qid', pair.get('pid', number))}",
            source,
            focus,
            of_question.get("qtype", ""),
            _text(question),
            _text(pair.find("Answer")),
        ]
        yield Row(number, None, dict(zip(COLUMNS, cells, strict=True)), file=name)


def _text(element: ElementTree.Element | None) -> str:
    return "" if element is None else "".join(element.itertext()).strip()
