"""Presidio's recognizers: its own where they are good, and ours for Brazil and for hospitals.

This module imports Presidio, which takes a second: `analyzer.py` imports it when there is a candidate.
"""

import re
from collections.abc import Callable
from typing import Any

import phonenumbers
import regex
from presidio_analyzer import Pattern, PatternRecognizer
from presidio_analyzer.predefined_recognizers import (
    EmailRecognizer,
    IbanRecognizer,
    IpRecognizer,
    PhoneRecognizer,
    UsNpiRecognizer,
    UsSsnRecognizer,
)

from toolkit.prepare.personal.patterns import FORM, FORMS, IPV4, NPI, SAID, SSN

LANGUAGE = "en"  # Presidio asks for one; the patterns are for English and Portuguese together
REGIONS = ("US", "BR", "PT", "GB")  # whose telephones are found without their country's code
TELEPHONE = 0.4  # Presidio's score
FEWEST_DIGITS = 7  # of a telephone in REGIONS; one of another country begins with a plus
_NEAR = 40  # characters before a number within which a word says that it is a telephone
_OF_ALL = {  # telephones that are no person's
    phonenumbers.PhoneNumberType.TOLL_FREE,
    phonenumbers.PhoneNumberType.SHARED_COST,
    phonenumbers.PhoneNumberType.PREMIUM_RATE,
    phonenumbers.PhoneNumberType.UAN,
}
_CALLED = re.compile(
    r"\b(?:tel|telephone|phone|ph|cell|cellphone|mobile|call|called|fax|reach(?:ed)?|contact|text|whats(?:app)?|zap|"
    r"fone|telefones?|cel|celular|contato|ligar|ligue|recado)\b",
    re.IGNORECASE,
)
_EXTENSION = re.compile(r" ?(?:x|ext\.?|ramal) ?\d{1,5}\Z", re.IGNORECASE)
_DIVIDED = re.compile(
    r"\+\d[\d ().-]{8,}|(?:1[-. ]?)?(?:\(\d{3}\) ?|\d{3}[-–./ ])\d{3}[-–. ]\d{4}|"  # of any country; of the US
    r"(?:\(0?\d\d\) ?|0?\d\d[ -])(?:9 ?)?\d{4}[- ]\d{4}|\d{3} \d{3} \d{3}|0\d{2,4} \d{3,4} \d{3,4}"  # BR; PT; GB
)


class Checked(PatternRecognizer):  # type: ignore[misc]
    """A pattern whose matches are checked, by check digits or otherwise."""

    def __init__(self, kind: str, patterns: list[Pattern], check: Callable[[str], bool | None]) -> None:
        super().__init__(kind, name=f"{kind} {patterns[0].score}", patterns=patterns, supported_language=LANGUAGE)
        self.check = check

    def validate_result(self, pattern_text: str) -> bool | None:
        """Return True for a number that is surely one, False for none, None where only its form speaks for it."""
        return self.check(pattern_text)


class Email(EmailRecognizer):  # type: ignore[misc]
    """Presidio's pattern for e-mail, without its list of public suffixes: a hospital's own network is not on it."""

    def validate_result(self, pattern_text: str) -> bool | None:
        """Accept every host whose last part is letters."""
        return re.fullmatch(r"[^\W\d_]{2,}|xn--[\w-]+", pattern_text.rpartition(".")[2]) is not None


class Telephone(PhoneRecognizer):  # type: ignore[misc]
    """Presidio's telephones (Google's libphonenumber) without hotlines.

    Digits without any division count after a word like `phone` only.
    """

    def analyze(self, text: str, entities: list[str], nlp_artifacts: Any = None) -> list[Any]:
        """Return the telephones of a text."""
        found: list[Any] = []
        if not _may_hold_telephone(text):
            return found
        for result in super().analyze(text, entities, nlp_artifacts):
            written = text[result.start : result.end]
            said = _CALLED.search(text, max(0, result.start - _NEAR), result.start) is not None
            alone = _DIVIDED.fullmatch(_EXTENSION.sub("", written)) is not None and not _in_number(text, result)
            if (said or alone) and not self._of_all(written):
                result.score = SAID if said else TELEPHONE
                found.append(result)
        return found

    def _of_all(self, written: str) -> bool:
        for region in self.supported_regions:
            try:
                number = phonenumbers.parse(written, region)
            except phonenumbers.NumberParseException:
                continue
            if phonenumbers.is_valid_number(number):
                return phonenumbers.number_type(number) in _OF_ALL
        return False


def _may_hold_telephone(text: str) -> bool:
    return "+" in text or "\uff0b" in text or sum(map(str.isdecimal, text)) >= FEWEST_DIGITS


def _in_number(text: str, result: Any) -> bool:
    """Say whether a match is a part of a longer number."""
    before, after = text[max(0, result.start - 2) : result.start], text[result.end : result.end + 2]
    return bool(re.search(r"\w[-./]?\Z", before) or re.match(r"[-./]?\w", after))


def may_hold_something(found_by: list[Any]) -> Callable[[str], bool]:
    """Return a test of a text that takes half as long as Presidio does: False only where that finds nothing."""
    patterns = [
        regex.compile(pattern.regex, one.global_regex_flags)
        for one in found_by
        if isinstance(one, PatternRecognizer)
        for pattern in one.patterns
    ]
    others = [one for one in found_by if not isinstance(one, PatternRecognizer)]  # telephones
    return lambda text: (
        any(pattern.search(text) for pattern in patterns)
        or any(one.analyze(text, one.supported_entities) for one in others)
    )


def recognizers() -> list[Any]:
    """Return every recognizer that needs no model."""
    ours = [Checked(form.kind, [Pattern(form.kind, form.pattern, form.score)], form.check) for form in FORMS]
    ipv6 = [pattern for pattern in IpRecognizer.PATTERNS if pattern.name == "IPv6"]
    return [
        *ours,
        Email(supported_language=LANGUAGE),
        Telephone(supported_language=LANGUAGE, supported_regions=REGIONS),
        IbanRecognizer(supported_language=LANGUAGE),
        IpRecognizer([Pattern("IPv4", IPV4, FORM), *ipv6], supported_language=LANGUAGE),
        UsNpiRecognizer([Pattern("said", NPI, SAID)], supported_language=LANGUAGE),
        UsSsnRecognizer([Pattern("form", SSN, FORM)], supported_language=LANGUAGE),
    ]
