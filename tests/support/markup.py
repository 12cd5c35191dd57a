"""What a test reads of a page: its text, its headings, and each figure with the place in a file that it names."""

import json
import re
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

UNITS = {"%": 0.01, "kB": 1e3, "MB": 1e6, "GB": 1e9, "B": 1.0}


@dataclass
class Figure:
    """A figure: its exact value, the place it names, and how it is written."""

    value: float
    place: str
    written: str = ""


@dataclass
class Markup:
    """A page's tags with their attributes, its text, its headings' levels, and its figures."""

    tags: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    text: str = ""
    levels: list[int] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)

    @property
    def plain(self) -> str:
        """The text with single spaces."""
        return " ".join(self.text.split())


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found, self.inside = Markup(), ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found.tags.append((tag, values))
        self.inside = tag
        if re.fullmatch("h[1-6]", tag):
            self.found.levels.append(int(tag[1]))
        if tag == "data":
            self.found.figures.append(Figure(json.loads(str(values["value"])), str(values["data-from"])))

    def handle_endtag(self, tag: str) -> None:
        self.inside = ""

    def handle_data(self, data: str) -> None:
        if self.inside == "data":
            self.found.figures[-1].written += data
        if self.inside != "style":
            self.found.text += data + " "


def read_markup(page: Path) -> Markup:
    reader = _Reader()
    reader.feed(page.read_text(encoding="utf-8"))
    return reader.found


def resolve(place: str, folder: Path) -> Any:
    """Return what stands at `FILE#/JSON/POINTER`."""
    name, _, pointer = place.partition("#")
    value = json.loads((folder / name).read_text(encoding="utf-8"))
    for part in pointer.split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        value = value[int(key)] if isinstance(value, list) else value[key]
    return value


def is_rounded(figure: Figure) -> bool:
    """Say whether a figure is written as its value, rounded to the digits that are shown."""
    if figure.written.startswith("<"):
        return figure.value < float(figure.written[1:])
    number, unit = re.fullmatch(r"(-?[\d,.]+(?:e[+-]\d+)?)\s*(\D*)", figure.written).groups()  # type: ignore[union-attr]
    scale = UNITS.get(unit, 1.0)
    digits = len(number.partition("e")[0].partition(".")[2])
    power = int(number.partition("e")[2] or 0)
    step = scale * 10.0 ** (power - digits)
    low_end = step if number == "99.99" else step / 2  # 100 % is written only of all
    return abs(float(number.replace(",", "")) * scale - figure.value) <= low_end * 1.0001
