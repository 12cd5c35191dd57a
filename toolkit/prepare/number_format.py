"""A spreadsheet's value as its number format shows it (ECMA-376 part 1, section 18.8.31).

Formats that follow the reader's own country, such as Excel's short date, are written as ISO 8601: the file does not
say which country that is. So are names of months in other languages than English.
"""

import re
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import ROUND_HALF_UP, Decimal
from fractions import Fraction
from functools import partial
from operator import eq, ge, gt, le, lt, ne

GENERAL_DIGITS = 10  # that Excel shows of a number with a fraction, a 0 before the point counted
LONGEST = 255  # characters of a format; Excel leaves out longer ones, and some patterns here take a length's square
OF_COUNTRY = ("mm-dd-yy", "m/d/yy h:mm", "m/d/yyyy", "m/d/yyyy h:mm")  # its formats 14 and 22, as openpyxl names them

_TOKEN = re.compile(
    r'"(?P<quoted>[^"]*)"?|\\(?P<escaped>.)|(?P<blank>_.)|(?P<fill>\*.)|\[(?P<bracket>[^\]]*)\]'
    r"|(?P<general>General)|(?P<half>AM/PM|A/P)|(?P<part>[yY]+|[mM]+|[dD]+|[hH]+|[sS]+(?:\.0+)?)"
    r"|(?P<exponent>[eE][+-])|(?P<digit>[0#?])|(?P<other>.)",
    re.DOTALL | re.IGNORECASE,
)
_SECTION = re.compile(r'(?:"[^"]*"?|\\.|\[[^\]]*\]|[_*].|[^;])*', re.DOTALL)
_CONDITION = re.compile(r"(<=|>=|<>|<|>|=)(-?[0-9.]+)")
_FRACTION = re.compile(
    r"(?P<before>.*?)(?:(?P<whole>[#0?]+)(?P<gap> +))?(?P<top>[#0?]+) ?/ ?(?P<under>[0-9#?]+)(?P<after>.*)", re.DOTALL
)
_OPPOSITE = {"<": gt, ">": lt, "<=": ge, ">=": le, "=": eq, "<>": ne}  # the bound stands first
_ENGLISH = ("409", "809", "c09", "1009", "0")

Value = str | bool | int | float | datetime | date | time | timedelta
Token = tuple[str, str]  # its kind and its text


def shown(value: Value, form: str) -> str:
    """Return the text that a cell of this value and number format shows."""
    sections = _sections(form if len(form) <= LONGEST else "General")
    if isinstance(value, bool):
        return str(value).upper()
    if isinstance(value, str):
        return _text(value, sections[3]) if len(sections) > 3 else value
    if isinstance(value, int | float):
        number = Decimal(repr(value))
        try:
            return _number(number, sections)
        except ArithmeticError:  # more digits than are of use
            return str(number)
    return _moment(value, form, sections[0])


def _sections(form: str) -> list[list[Token]]:
    texts, position = [], 0
    while position <= len(form):
        match = _SECTION.match(form, position)
        assert match is not None  # it may be empty
        texts.append(match[0])
        position = match.end() + 1
    return [[(str(found.lastgroup), found[str(found.lastgroup)]) for found in _TOKEN.finditer(text)] for text in texts]


def _literal(token: Token) -> str:
    kind, text = token
    if kind == "bracket":  # `[$R$-416]` is a currency and its country; colours and conditions show nothing
        return text[1:].partition("-")[0] if text.startswith("$") else ""
    return {"blank": " ", "fill": ""}.get(kind, text)


def _text(value: str, tokens: list[Token]) -> str:
    return "".join(value if token == ("other", "@") else _literal(token) for token in tokens)


def _number(value: Decimal, sections: list[list[Token]]) -> str:
    if not value.is_finite():
        return str(value)
    tokens, signed = _choose(value, sections)
    sign, value = ("-" if value < 0 and signed else ""), abs(value)
    kinds = {kind for kind, _ in tokens}
    if "general" in kinds or (not tokens and len(sections) == 1):
        number = _general(value)
        shown = "".join(number if token[0] == "general" else _literal(token) for token in tokens) or number
        return sign + shown
    if ("other", "@") in tokens:
        return sign + _text(_general(value), tokens)
    if "digit" not in kinds:
        return sign + "".join(map(_literal, tokens))
    value *= 100 ** tokens.count(("other", "%"))
    if "exponent" in kinds:
        shown = _scientific(value, tokens)
    elif ("other", "/") in tokens:
        shown = _fraction(value, tokens)
    else:
        shown = _decimal(value, tokens)
    return sign + shown if any(mark in shown for mark in "123456789") else shown  # no minus before 0.00


def _choose(value: Decimal, sections: list[list[Token]]) -> tuple[list[Token], bool]:
    """Return the section for a value, and whether it needs a minus in front."""
    conditions = [_condition(tokens) for tokens in sections[:2]]
    if any(conditions):
        for tokens, condition in zip(sections, conditions, strict=False):
            if condition and condition(value):
                return tokens, True
        rest = [tokens for tokens, condition in zip(sections[:3], [*conditions, None], strict=False) if not condition]
        return (rest[-1] if rest else sections[0]), True
    if len(sections) > 1 and value < 0:
        return sections[1], False
    if len(sections) > 2 and value == 0:
        return sections[2], False
    return sections[0], True


def _condition(tokens: list[Token]) -> Callable[[Decimal], bool] | None:
    for kind, text in tokens:
        match = _CONDITION.fullmatch(text) if kind == "bracket" else None
        if match:
            return partial(_OPPOSITE[match[1]], Decimal(match[2]))
    return None


def _general(value: Decimal) -> str:
    """Return a number without a format: whole ones with all digits, others with as many as Excel shows."""
    if value == value.to_integral_value() and value < Decimal(10) ** 15:
        return str(int(value))
    digits = GENERAL_DIGITS + min(0, value.adjusted())
    text = f"{value:.{digits}g}" if value >= Decimal("1e-4") else f"{value:.5e}"
    mantissa, mark, exponent = text.partition("e")
    if "." in mantissa:
        mantissa = mantissa.rstrip("0").rstrip(".")
    return f"{mantissa}E{int(exponent):+03d}" if mark else mantissa


def _decimal(value: Decimal, tokens: list[Token]) -> str:
    point = next((at for at, token in enumerate(tokens) if token == ("other", ".")), len(tokens))
    digits = [at for at, (kind, _) in enumerate(tokens) if kind == "digit"]
    whole, parts = [at for at in digits if at < point], [at for at in digits if at > point]
    commas = [at for at, token in enumerate(tokens) if token == ("other", ",")]
    last = whole[-1] if whole else -1
    grouped = any(whole[0] < at < last for at in commas) if whole else False
    scaling = [at for at in commas if at > last and (not parts or at < point or at > parts[-1])]
    value /= Decimal(1000) ** len(scaling)
    rounded = value.quantize(Decimal(1).scaleb(-len(parts)), ROUND_HALF_UP)
    left, _, right = f"{rounded:f}".partition(".")
    left = left.lstrip("0")
    # Zeros at the end show only where the format has a 0.
    kept = max(len(right.rstrip("0")), *(number for number, at in enumerate(parts, 1) if tokens[at][1] == "0"), 0)
    places = {
        at: right[number] if number < kept else {"?": " "}.get(tokens[at][1], "") for number, at in enumerate(parts)
    }
    count = 0
    for at in reversed(whole):  # the first place takes all that is left
        take, left = (left, "") if at == whole[0] else (left[-1:], left[:-1])
        take = take or {"0": "0", "?": " "}.get(tokens[at][1], "")
        behind = range(count + len(take) - 1, count - 1, -1)  # each digit
        places[at] = "".join(
            digit + "," * (grouped and after > 0 and after % 3 == 0) for digit, after in zip(take, behind, strict=True)
        )
        count += len(take)
    skipped = {*scaling, *(at for at in commas if whole and whole[0] < at < last)}
    if not whole and left:
        places[point] = f"{left}."
    return "".join(
        places[at] if at in places else "" if at in skipped else _literal(token) for at, token in enumerate(tokens)
    )


def _scientific(value: Decimal, tokens: list[Token]) -> str:
    at = next(at for at, (kind, _) in enumerate(tokens) if kind == "exponent")
    before, after = tokens[:at], tokens[at + 1 :]
    point = before.index(("other", ".")) if ("other", ".") in before else at
    whole = sum(kind == "digit" for kind, _ in before[:point]) or 1
    exponent = value.adjusted() if value else 0
    exponent -= exponent % whole if whole > 1 else 0
    mantissa = _decimal(value.scaleb(-exponent), before)
    if whole == 1 and mantissa.startswith("10"):  # 9.99 was rounded up
        exponent += 1
        mantissa = _decimal(value.scaleb(-exponent), before)
    sign = "-" if exponent < 0 else "+" if tokens[at][1].endswith("+") else ""
    return f"{mantissa}{tokens[at][1][0]}{sign}{_decimal(Decimal(abs(exponent)), after)}"


def _fraction(value: Decimal, tokens: list[Token]) -> str:
    """Write `# ?/?` and the like; a denominator of digits is kept."""
    text = "".join(text if kind == "digit" else _literal((kind, text)) for kind, text in tokens)
    match = _FRACTION.fullmatch(text)
    if match is None:
        return _general(value)
    whole, rest = (int(value), Fraction(value) - int(value)) if match["whole"] else (0, Fraction(value))
    if match["under"].isdecimal() and int(match["under"]):
        under = int(match["under"])
        top = round(rest * under)
    else:
        near = rest.limit_denominator(10 ** len(match["under"]) - 1)
        top, under = near.numerator, near.denominator
    if match["whole"] and top == under:
        whole, top = whole + 1, 0
    parts = [str(whole)] if match["whole"] and (whole or not top) else []
    parts += [f"{top}/{under}"] if top or not match["whole"] else []
    return match["before"] + " ".join(parts) + match["after"]


def _moment(value: datetime | date | time | timedelta, form: str, tokens: list[Token]) -> str:
    """Write a date, a time of day or a length of time."""
    if isinstance(value, timedelta):
        moment, seconds = datetime(1900, 1, 1) + timedelta(seconds=value.total_seconds() % 86400), value.total_seconds()
    elif isinstance(value, time):
        moment = datetime.combine(date(1900, 1, 1), value)
        seconds = (moment - datetime(1900, 1, 1)).total_seconds()
    else:
        moment = value if isinstance(value, datetime) else datetime.combine(value, time())
        seconds = (moment - datetime(1899, 12, 30)).total_seconds()
    countries = [text.partition("-")[2].lower() for kind, text in tokens if kind == "bracket" and text.startswith("$")]
    named = any(kind == "part" and len(text) > 2 and text[0].lower() in "md" for kind, text in tokens)
    if (
        form.lower() in OF_COUNTRY
        or any(country.startswith(("f8", "f4")) for country in countries)
        or (named and any(country.lstrip("0") not in _ENGLISH for country in countries))
    ):
        return _iso(value)
    units = [
        (at, text[0].lower())
        for at, (kind, text) in enumerate(tokens)
        if kind == "part" or (kind == "bracket" and re.fullmatch("[hms]+", text.lower()))
    ]
    if not units:
        return _iso(value)
    twelve = any(kind == "half" for kind, _ in tokens)
    places = {at: number for number, (at, _) in enumerate(units)}
    out = []
    for at, (kind, text) in enumerate(tokens):
        if kind == "half":
            half = "AM" if moment.hour < 12 else "PM"
            out.append(half if len(text) > 3 else half[0])
        elif at not in places:
            out.append(_literal((kind, text)))
        elif kind == "bracket":
            unit = {"h": 3600, "m": 60, "s": 1}[text[0].lower()]
            out.append(f"{int(seconds // unit):0{len(text)}d}")
        else:
            number = places[at]
            around = (units[number - 1][1] if number else "", units[number + 1][1] if number + 1 < len(units) else "")
            minute = text[0].lower() == "m" and len(text) <= 2 and (around[0] == "h" or around[1] == "s")
            out.append(_unit(moment, text.lower(), minute, twelve))
    return "".join(out)


def _unit(moment: datetime, text: str, minute: bool, twelve: bool) -> str:
    letter, length = text[0], len(text)
    if letter == "y":
        return f"{moment.year:04d}" if length > 2 else f"{moment.year % 100:02d}"
    if length > 2 and (letter == "d" or (letter == "m" and not minute)):
        name = moment.strftime("%A" if letter == "d" else "%B")
        return name[0] if text == "mmmmm" else name if length > 3 else name[:3]
    if letter == "s":
        whole, _, part = text.partition(".")
        decimals = f"{moment.microsecond:06d}"[: len(part)]
        return f"{moment.second:0{min(len(whole), 2)}d}" + (f".{decimals}" if part else "")
    hour = (moment.hour % 12 or 12) if twelve else moment.hour
    number = {"m": moment.minute if minute else moment.month, "d": moment.day, "h": hour}[letter]
    return f"{number:0{min(length, 2)}d}"


def _iso(value: datetime | date | time | timedelta) -> str:
    if isinstance(value, datetime):
        midnight = value.time() == time()
        return value.date().isoformat() if midnight else value.isoformat(" ", "seconds")
    if isinstance(value, timedelta):
        return str(value)
    return value.isoformat()
