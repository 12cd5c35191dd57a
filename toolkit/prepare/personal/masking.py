"""Put placeholders such as `<BR_CPF_1>` for what was found: within a record, the same value has the same number."""

import re
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from toolkit.prepare.personal.analyzer import NAMES, Find, Span

LEAST = 5  # letters and digits of a value that is looked for again
EXCERPT = 40  # characters shown on either side of a placeholder
_WORDED = {*NAMES, "EMAIL_ADDRESS", "URL_WITH_USER", "DATE_OF_BIRTH", "IP_ADDRESS"}


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
        written = " ".join(value.casefold().split()) if kind in _WORDED else re.sub(r"\W", "", value.casefold())
        numbers = _date(value) if kind == "DATE_OF_BIRTH" else []
        key = kind, " ".join(map(str, sorted(numbers))) or written
        if key not in self._given:
            self._last[kind] += 1
            self._given[key] = f"<{kind}_{self._last[kind]}>"
        return self._given[key]


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
        written = "|".join(r"[\W_]{1,3}".join(f"0?{number}" for number in order) for order in orders)
        return re.compile(rf"(?<!\d)(?:{written})(?!\d)")
    if kind in _WORDED:
        parts, between, least = value.split(), r"\s+", 1
    else:
        parts, between, least = re.findall(r"[^\W_]", value), r"[\W_]{0,2}", LEAST
    if len(parts) < least or len(value) < LEAST:
        return None
    # A file's name may join it to others: `exam_52998224725.pdf`.
    return re.compile(rf"(?<![^\W_]){between.join(map(re.escape, parts))}(?![^\W_])", re.IGNORECASE)


def _date(value: str) -> list[int]:
    """Return the three numbers of a date with a whole year, which may stand first or last; none of another one."""
    found = re.fullmatch(r"(\d{1,4})[\W_]{1,3}(\d{1,2})[\W_]{1,3}(\d{1,4})", value.strip())
    numbers = [int(number) for number in found.groups()] if found else []
    return numbers if sum(number > 999 for number in numbers) == 1 else []


def hidden(text: str, spans: Sequence[Span], placeholders: Placeholders) -> tuple[str, list[str]]:
    """Return a text with placeholders, and for each span, in their order, its placeholder with the text around it."""
    if not spans:
        return text, []
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
    done = _anonymizer().anonymize(text, results, operators, merge_entities_with_spaces=False)
    items = sorted(done.items, key=lambda item: item.start)
    if len(items) != len(given):
        raise AssertionError(f"{len(given)} findings, {len(items)} placeholders")
    return done.text, [_excerpt(done.text, item.start, item.end) for item in items]


def _anonymizer() -> Any:
    from presidio_anonymizer import AnonymizerEngine

    return AnonymizerEngine()


def _excerpt(text: str, start: int, end: int) -> str:
    before, after = max(0, start - EXCERPT), min(len(text), end + EXCERPT)
    shown = " ".join(text[before:after].split())
    return ("…" if before else "") + shown + ("…" if after < len(text) else "")
