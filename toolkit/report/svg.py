"""A small SVG writer: axes with round ticks, and shapes that take their colours from the page's style sheet.

Every chart is 340 units wide, which is about a phone's screen, so that its text is as large as the page's there.
"""

import math
from dataclasses import dataclass
from xml.etree import ElementTree

from toolkit.report.words import shown

WIDTH = 340
LETTER = 6.2  # width of a letter of 11 units, about


@dataclass(frozen=True)
class Scale:
    """A range of values on a range of coordinates, straight or by powers of ten."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return a value's coordinate; one outside the range is put at its end."""
        low, high, value = (math.log10(max(x, 1e-300)) if self.log else x for x in (self.low, self.high, value))
        share = 0.5 if high == low else (value - low) / (high - low)
        return self.start + min(max(share, 0.0), 1.0) * (self.end - self.start)


def round_ticks(low: float, high: float, count: int = 4) -> list[float]:
    """Return about `count` round values from `low` to `high`, at steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    power = 10.0 ** math.floor(math.log10((high - low) / count))

    def ticks(step: float) -> list[float]:
        numbers = range(math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9) + 1)
        return [float(f"{number * step:.12g}") for number in numbers]

    return min((ticks(factor * power) for factor in (1, 2, 5, 10)), key=lambda found: abs(len(found) - count - 0.5))


def power_of_ten(value: float) -> str:
    """Write a power of ten: `0.01`, `10⁻⁵`."""
    power = round(math.log10(value))
    return (
        f"{value:g}" if -3 <= power <= 3 else "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
    )


def decades(low: float, high: float) -> list[float]:
    """Return the powers of ten from `low` to `high`; every second or third of many."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    return [10.0**power for power in range(first, last + 1, 1 + (last - first) // 5)]


def new(ident: str, height: float, title: str, description: str) -> ElementTree.Element:
    """Begin a chart with a title and a description for those who cannot see it; `ident` is unique on the page."""
    svg = ElementTree.Element(
        "svg",
        {
            "viewBox": f"0 0 {WIDTH} {height:g}",
            "role": "img",
            "aria-labelledby": f"{ident}-title {ident}-text",
            "class": "chart",
        },
    )
    for tag, name, text in (("title", "title", title), ("desc", "text", description)):
        ElementTree.SubElement(svg, tag, {"id": f"{ident}-{name}"}).text = shown(text)
    return svg


def text(svg: ElementTree.Element, x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> None:
    """Write words with their baseline at y; `anchor` is start, middle or end."""
    found = {"x": f"{x:.1f}", "y": f"{y:.1f}", "text-anchor": anchor} | ({"class": kind} if kind else {})
    ElementTree.SubElement(svg, "text", found).text = shown(words)


def line(svg: ElementTree.Element, x1: float, y1: float, x2: float, y2: float, kind: str) -> None:
    """Draw a straight line."""
    values = {"x1": x1, "y1": y1, "x2": x2, "y2": y2}
    ElementTree.SubElement(svg, "line", {**{key: f"{each:.1f}" for key, each in values.items()}, "class": kind})


def path(svg: ElementTree.Element, points: list[tuple[float, float]], kind: str) -> None:
    """Draw a line through points."""
    if len(points) > 1:
        way = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
        ElementTree.SubElement(svg, "path", {"d": way, "class": kind})


def box(svg: ElementTree.Element, x: float, y: float, width: float, height: float, kind: str) -> None:
    """Fill a rectangle."""
    values = {"x": x, "y": y, "width": max(width, 0), "height": max(height, 0)}
    ElementTree.SubElement(svg, "rect", {**{key: f"{each:.1f}" for key, each in values.items()}, "class": kind})


def dot(svg: ElementTree.Element, x: float, y: float, kind: str, *, cross: bool = False) -> None:
    """Draw a point: a disc, or a cross for what failed."""
    if not cross:
        ElementTree.SubElement(svg, "circle", {"cx": f"{x:.1f}", "cy": f"{y:.1f}", "r": "3.5", "class": kind})
        return
    way = f"M{x - 4:.1f} {y - 4:.1f}l8 8m-8 0l8 -8"
    ElementTree.SubElement(svg, "path", {"d": way, "class": f"cross {kind}"})


def finished(svg: ElementTree.Element) -> str:
    """Return a chart's text."""
    return ElementTree.tostring(svg, encoding="unicode")


def without_overlap(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Move labels apart, so that two are at least `gap` from each other and all from `low` to `high`.

    Their order stays. Where there is no room for the gap, all have the same smaller one.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    gap = min(gap, (high - low) / max(len(wanted) - 1, 1))
    placed: list[float] = []
    for index in order:
        placed.append(max(wanted[index], placed[-1] + gap if placed else low))
    end = high
    for number in range(len(placed) - 1, -1, -1):
        placed[number] = min(placed[number], end)
        end = placed[number] - gap
    return [placed[order.index(index)] for index in range(len(wanted))]
