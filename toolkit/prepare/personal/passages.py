"""Which parts of a text are worth a close look: a cheap search, so that few texts reach the analyzer."""

import re

BEFORE, AFTER = 100, 60  # characters around a candidate that may say what it is
WORD = 60  # characters at most until a passage begins or ends at white space
REACH = 60  # characters after a word within which its number begins

# Words next to which a short number or a date names a person. Portuguese is written with and without accents.
_WORDS = (
    r"d\.?\s?o\.?b|birth|anivers|born\b|b\.\s|nasc|d\.?n|dt\.?\s?nasc|m\.?r\.?n|patient (?:id|no|number|record)|"
    r"chart|hosp|(?:encounter|visit|case|file|unit) ?(?:id|no|num|#)|pt (?:id|no|number|#)|mr ?#|reg\.|rh\b|"
    r"bd\b|b-?day|record|acct|account|pront|registro|atendimento|rghc|mem|insurance|policy|"
    r"subscriber|beneficiary|medicare|medicaid|mbi|health plan|plano|seguro|0xx|"
    r"carteir|conv[eê]nio|matr[ií]cula|ap[oó]lice|"
    r"benefici[aá]ri|c\.?n\.?p\.?j|r\.?g\b|identidade|cep"
)
_WORD = re.compile(rf"(?<![^\W\d_])(?:{_WORDS})", re.IGNORECASE)
# A birthday may have one digit, or none: "born on the third of May". The first are searched for quickly.
_OF_BIRTH = ("irth", "born", "nasc", "nivers", "bday", "b-day", "d.o.b", "dob")
_BIRTH_MONTH = re.compile(
    r"(?:birth|born\b|nasc|anivers|\bb-?day|\bd\.?o\.?b\b)[^\n]{0,60}?\b(?:jan|f[eé][bv]|mar|a[bp]r|ma[iy]|ju[nl]|aug|"
    r"ago|se[pt]|o[cu]t|nov|de[cz])",
    re.IGNORECASE,
)
_DIGITS = re.compile(r"\d\d")

_NUMBER = re.compile(r"\d(?:[ .()/–-]{0,3}\d){6,}")  # seven digits or more
_FORM = re.compile(
    r"[0-9a-fA-F]:[0-9a-fA-F]{0,4}:|\d\.\d{1,3}\.\d{1,3}\.\d|[1-9][A-Za-z][A-Za-z0-9]\d-?[A-Za-z][A-Za-z0-9]\d|"
    r"[A-Za-z0-9]{3}/[A-Za-z0-9]{4}-\d\d"
)  # IP addresses, a Medicare number, a CNPJ with letters
_ADDRESS = re.compile(  # each begins with a mark, which is searched for quickly
    r"@|[\[(](?:at|arroba)[\])]|/~\w|/(?:users?|u|profile|perfil)/|"
    r"\.com/(?:(?<=facebook.com/)|(?<=instagram.com/)|(?<=twitter.com/)|(?<=tiktok.com/)|(?<=linkedin.com/)|(?<=\bx.com/))|"
    r"[?&](?:user|username|usuario|patient|paciente|email|name|nome|mrn|cpf|login)(?:_?id)?=",
    re.IGNORECASE,
)
_IN_ADDRESS = ("@", "://", ".com/", "[at]", "(at)", "[arroba]", "(arroba)")


def passages(text: str) -> list[tuple[int, int]]:
    """Return where a text may hold something personal, as (start, end) without overlap; empty where nothing may.

    A passage begins and ends at white space, and has what stands around a candidate.
    """
    found = []
    if any(mark in text for mark in _IN_ADDRESS):
        found = [match.span() for match in _ADDRESS.finditer(text)]
    lower = text.lower()
    if any(mark in lower for mark in _OF_BIRTH):
        found += [(match.start(), match.end() + REACH) for match in _BIRTH_MONTH.finditer(text)]
    for start, end in _near_digits(text):
        found += [match.span() for pattern in (_NUMBER, _FORM) for match in pattern.finditer(text, start, end)]
        found += [(match.start(), min(end, match.end() + REACH)) for match in _WORD.finditer(text, start, end)]
    return _merged(sorted(_widened(text, start, end) for start, end in found))


def _near_digits(text: str) -> list[tuple[int, int]]:
    """Return the parts of a text that have two digits in a row, or may say what those are."""
    return _merged([(max(0, match.start() - REACH), match.end() + REACH) for match in _DIGITS.finditer(text)])


def _merged(parts: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join parts that overlap; they come in the order of their starts."""
    merged: list[tuple[int, int]] = []
    for start, end in parts:
        if merged and start <= merged[-1][1]:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    return merged


def _widened(text: str, start: int, end: int) -> tuple[int, int]:
    start, end = max(0, start - BEFORE), min(len(text), end + AFTER)
    first, last = max(0, start - WORD), min(len(text), end + WORD)
    while start > first and not text[start - 1].isspace():
        start -= 1
    while end < last and not text[end].isspace():
        end += 1
    return start, end
