"""Put placeholders such as `<BR_CPF_1>` for what was found: within a record, the same value has the same number."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from toolkit.prepare.personal.analyzer import NAMES, Find, Span

LEAST = 5  # letters and digits of a value that is looked for again
EXCERPT = 40  # characters shown on either side of a placeholder
_WORDED = {*NAMES, "EMAIL_ADDRESS", "URL_WITH_USER", "DATE_OF_BIRTH", "IP_ADDRESS"}
LOCAL = 7  # digits of a telephone without its area and country
# The beginnings of months' names in English and Portuguese, and the words of a date that say nothing.
_MONTHS = (
    "jan",
    "feb|fev",
    "mar",
    "apr|abr",
    "may|mai",
    "jun",
    "jul",
    "aug|ago",
    "sep|set",
    "oct|out",
    "nov",
    "dec|dez",
)
_GAP = r"[\W_]{1,3}(?:(?:d[eo]|of)\s)?"
_FILLERS = frozenset(("de", "do", "of", "the", "st", "nd", "rd", "th", "o", "º", "ª"))


@dataclass
class Placeholders:
    """The placeholders of one record. Numbers that its texts already hold are not given again."""

    texts: Sequence[str]
    _given: dict[tuple[str, str], str] = field(default_factory=dict)
    _last: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        for text in self.texts:
            for kind, number in re.findall(r"<([A-Z_]+)_(\d{1,6})>", text) if "<" in text else ():
                self._last[kind] = max(self._last[kind], int(number))

    def give(self, kind: str, value: str) -> str:
        """Return the placeholder of a value; how it is written (case, spaces, points in a number) makes no other."""
        key = kind, _plain(kind, value)
        if kind == "PHONE_NUMBER":
            key = next((other for other in self._given if other[0] == kind and _one_telephone(other[1], key[1])), key)
        if key not in self._given:
            self._last[kind] += 1
            self._given[key] = f"<{kind}_{self._last[kind]}>"
        return self._given[key]


def _plain(kind: str, value: str) -> str:
    """Return a value as it is compared: a date by its numbers, a telephone without the zeros in front of its area."""
    folded = value.casefold()
    if kind == "DATE_OF_BIRTH" and (numbers := _date(value)):
        return " ".join(map(str, sorted(numbers)))
    if kind == "EMAIL_ADDRESS":
        return re.sub(r" ?[\[(](?:at|arroba)[\])] ?| ?@ ?", "@", folded)
    if kind == "PHONE_NUMBER":
        return re.sub(r"\W", "", re.sub(r"\(0\)|\b0xx", "", folded)).lstrip("0")
    return " ".join(folded.split()) if kind in _WORDED else re.sub(r"\W", "", folded)


def _one_telephone(one: str, other: str) -> bool:
    """Tell whether two telephones are one, of which one may lack the country, or the area as well."""
    short, long = sorted((one, other), key=len)
    return len(short) >= LOCAL and long.endswith(short)


def everywhere(texts: Sequence[str], find: Find) -> list[list[Span]]:
    """Return what is found in each text of a record, and where the same value stands again without such words."""
    found = [[*find(text)] for text in texts]
    values = {
        (span.kind, span.score, text[span.start : span.end])
        for text, spans in zip(texts, found, strict=True)
        for span in spans
    }
    for kind, score, value in sorted(values):
        pattern = _again(kind, value)
        for text, spans in zip(texts, found, strict=True):
            for match in pattern.finditer(text) if pattern else ():
                if all(match.end() <= span.start or span.end <= match.start() for span in spans):
                    spans.append(Span(kind, score, *match.span()))
    return [sorted(spans, key=lambda span: span.start) for spans in found]


def _again(kind: str, value: str) -> re.Pattern[str] | None:
    """Return a pattern of a value however it is divided; None for one so short that it may be another number."""
    if kind == "DATE_OF_BIRTH" and (numbers := _date(value)):
        year, one, other = sorted(numbers, key=lambda number: number < 100)
        orders = ((year, one, other), (year, other, one), (one, other, year), (other, one, year))
        ways = [r"[\W_]{1,3}".join(f"0?{number}" for number in order) for order in orders]
        for day, month in {(one, other), (other, one)}:
            if 1 <= month <= len(_MONTHS):
                name, nth = rf"(?:{_MONTHS[month - 1]})[^\W\d_]*", rf"0?{day}(?:st|nd|rd|th|[ºª°])?"
                ways += [rf"{_GAP.join(order)}{_GAP}{year}" for order in ((nth, name), (name, nth))]
        return re.compile(rf"(?<!\d)(?:{'|'.join(ways)})(?!\d)", re.IGNORECASE)
    if kind in _WORDED:
        parts, between, least = value.split(), r"\s+", 1
    else:
        parts, between, least = re.findall(r"[^\W_]", value), r"[\W_]{0,2}", LEAST
    if len(parts) < least or len(value) < LEAST:
        return None
    # A file's name may join it to others: `exam_52998224725.pdf`.
    return re.compile(rf"(?<![^\W_]){between.join(map(re.escape, parts))}(?![^\W_])", re.IGNORECASE)


def _date(value: str) -> list[int]:
    """Return the three numbers of a date with a whole year, its month perhaps by its name; none of another one."""
    numbers = []
    for word in re.findall(r"\d+|[^\W\d_]+", value.casefold()):
        month = next((at for at, names in enumerate(_MONTHS, 1) if re.match(names, word)), 0)
        if word.isdecimal() or month:
            numbers.append(month or int(word))
        elif word not in _FILLERS:
            return []
    years = [number for number in numbers if 999 < number < 10_000]
    return numbers if len(numbers) == 3 and len(years) == 1 and sum(numbers) - years[0] < 100 else []


def hidden(text: str, spans: Sequence[Span], placeholders: Placeholders) -> tuple[str, list[str]]:
    """Return a text with placeholders, and for each span, in their order, its placeholder with the text around it."""
    if not spans:
        return text, []
    from presidio_anonymizer import AnonymizerEngine
    from presidio_anonymizer.entities import OperatorConfig, RecognizerResult

    given = {span.start: placeholders.give(span.kind, text[span.start : span.end]) for span in spans}
    # Presidio works from the end of the text, so the numbers are given before, in the order of reading.
    results = [RecognizerResult(span.kind, span.start, span.end, span.score) for span in spans]
    operators = {
        span.kind: OperatorConfig(
            "custom",
            {"lambda": lambda value, kind=span.kind: placeholders.give(kind, value)},
        )
        for span in spans
    }
    done = AnonymizerEngine().anonymize(text, results, operators, merge_entities_with_spaces=False)
    items = sorted(done.items, key=lambda item: item.start)
    if len(items) != len(given):
        raise AssertionError(f"{len(given)} findings, {len(items)} placeholders")
    return done.text, [_excerpt(done.text, item.start, item.end) for item in items]


def _excerpt(text: str, start: int, end: int) -> str:
    before, after = max(0, start - EXCERPT), min(len(text), end + EXCERPT)
    shown = " ".join(text[before:after].split())
    return ("…" if before else "") + shown + ("…" if after < len(text) else "")
