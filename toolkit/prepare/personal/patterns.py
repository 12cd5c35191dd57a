r"""How what identifies a person is written, in English and Portuguese, and which words say what a number is.

The syntax is that of the module `regex`, which Presidio matches with, without regard to case. What stands before `\K`
is no part of the finding.
"""

import datetime
import re
from collections.abc import Callable
from dataclasses import dataclass

from toolkit.prepare.personal.checksums import valid_cnpj, valid_cns, valid_cpf, valid_luhn, valid_rg, valid_ssn

# The score of a number by its form alone, and with words around it that say what it is. With check digits it is 1.
FORM, SAID = 0.6, 0.85


@dataclass(frozen=True)
class Form:
    """One way to write a kind. `check` returns True for a surely right one, False for a wrong one, None for neither."""

    kind: str
    pattern: str
    score: float = FORM
    check: Callable[[str], bool | None] = lambda _: None


def _one_of(*words: str) -> str:
    """Match one of some words; a number may follow without a space."""
    return rf"\b(?:{'|'.join(words)})(?![^\W\d_])"


def _after(words: str, number: str, gap: str = "") -> str:
    return rf"{words}{gap or _GAP}\K{number}"


def _or_mistyped(check: Callable[[str], bool]) -> Callable[[str], bool | None]:
    """Keep a number that a word names although its check digits are wrong."""
    return lambda text: True if check(text) else None


def possible_date(text: str) -> bool | None:
    """Return False for a date of birth with a month or day that does not exist, or in a year to come; None else."""
    if re.fullmatch(r"\d{8}", text):
        day_first = int(text[4:]) > 1800
        text = "-".join((text[:2], text[2:4], text[4:]) if day_first else (text[:4], text[4:6], text[6:]))
    numbers = [int(number) for number in re.findall(r"\d+", text)]
    if not numbers:  # all of it in words
        return None
    if max(numbers) > datetime.date.today().year or 1800 > max(numbers) > 99:
        return False
    if re.search(r"[^\W\d_]", text) is None and len(numbers) == 3:
        first, second = numbers[1:] if numbers[0] > 31 else numbers[:2]
        if not (0 < min(first, second) <= 12 and 0 < max(first, second) <= 31):
            return False
    return None


# What may stand between the words and the number: "nº", "number:", "do paciente", "is".
_GAP = (
    r"(?:[\s:#=.,()|\"-]|\b(?:n[º°o.]|nr\.?|num(?:ber|ero|\.)?|n[uú]mero|id|code|is|é|of|the|d[aeo]|sob|o|plano|"
    r"paciente|patient|hospitalar|sa[uú]de|verified)\b|\bn[º°.]|\bnum\.){0,9}"
)
# After words that name one number alone, other words may stand between: "social is", "CEP da residência".
_LOOSE = r"(?:[^\d\n]{0,25}?[^\w\n]|[\s:=-]{0,3})"

_MONTH = (
    r"(?:jan(?:uary|eiro)?|feb(?:ruary)?|fev(?:ereiro)?|mar(?:ch|ço|co)?|apr(?:il)?|abr(?:il)?|may|mai(?:o)?|june?|"
    r"jun(?:ho)?|july?|jul(?:ho)?|aug(?:ust)?|ago(?:sto)?|sep(?:t(?:ember)?)?|set(?:embro)?|oct(?:ober)?|out(?:ubro)?|"
    r"nov(?:ember|embro)?|dec(?:ember)?|dez(?:embro)?)\.?"
)
_YEAR = r"(?:1[89]|20)\d\d"
_CUT = r" ?[-/.] ?"
_ENGLISH_DAY = (
    r"(?:twenty|thirty)[\s-]first|twenty[\s-](?:second|third|fourth|fifth|sixth|seventh|eighth|ninth)|first|second|third|"
    r"fourth|fifth|sixth|seventh|eighth|ninth|tenth|eleventh|twelfth|(?:thir|four|fif|six|seven|eigh|nine)teenth|"
    r"twentieth|thirtieth"
)
_PORTUGUESE_DAY = (
    r"(?:vinte|trinta)\se\sum|vinte\se\s(?:dois|tr[eê]s|quatro|cinco|seis|sete|oito|nove)|primeiro|dois|tr[eê]s|quatro|"
    r"cinco|seis|sete|oito|nove|dez|onze|doze|treze|[cq]uatorze|quinze|dezesseis|dezasseis|dezessete|dezassete|dezoito|"
    r"dezenove|dezanove|vinte|trinta"
)
_DAY = rf"(?:(?:0?[1-9]|[12]\d|3[01])(?:st|nd|rd|th|\.?[ºª°])?|\b(?:{_ENGLISH_DAY}|{_PORTUGUESE_DAY})\b)"
_TENS = r"(?:twenty|thirty|forty|fifty|sixty|seventy|eighty|ninety)"
_WORDED_YEAR = (
    rf"(?:nineteen[\s-](?:hundred(?:\sand)?[\s-]|oh[\s-])?(?:{_TENS}|\w+teen|ten|eleven|twelve)?|"
    r"two\sthousand(?:\sand)?|twenty)(?:[\s-](?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|\w+teen|"
    rf"{_TENS}(?:[\s-](?:one|two|three|four|five|six|seven|eight|nine))?))?\b|"
    r"(?:mil\s(?:e\s)?novecentos|dois\smil)(?:\se\s\p{L}+){0,2}"
)
_ANY_YEAR = rf"(?:{_YEAR}|['’]?\d\d\b|{_WORDED_YEAR})"
_BETWEEN = r"(?:[\s/.-]|,\s|\s?(?:de|of)\s|\sday\sof\s)?"  # day, month and year
_DAY_AND_MONTH = (
    # "may" is a verb too, and "mar" the sea: without a year both have a capital.
    rf"{_DAY}{_BETWEEN}(?!(?-i:may|mar)\b){_MONTH}(?<!\.)(?![^\W\d_])",
    rf"(?!(?-i:may|mar)\b){_MONTH}(?:\s(?:the\s)?|[/.-]){_DAY}(?![\d%]|\sde\s)",
)
_DATES = (
    rf"{_YEAR}{_CUT}\d\d?{_CUT}\d\d?",
    rf"\d\d?{_CUT}\d\d?{_CUT}(?:{_YEAR}|\d\d)",
    rf"{_MONTH}(?:\s(?:the\s)?|[/.-])?{_DAY}(?:,?\s|[/.-]){_ANY_YEAR}",
    rf"{_DAY}{_BETWEEN}{_MONTH}{_BETWEEN}{_ANY_YEAR}",
    rf"{_YEAR}[\s/.-]?{_MONTH}[\s/.-]?\d\d?",
    rf"{_MONTH}(?:[\s/-]|\s(?:de|of)\s){_YEAR}",
    rf"{_MONTH}/\d\d",
    rf"\d\d?/{_YEAR}",
    rf"\d{{4}}{_YEAR}",
    rf"{_YEAR}\d{{4}}",
)
_DATE = rf"(?:{'|'.join(_DATES)})(?!\d)"
_BORN = _one_of(
    r"d\.?\s?o\.?b", r"date\sof\sbirth", r"birth\s?-?date", "birthday", r"b-?day", "bd", "anivers[aá]rio", "born",
    r"(?-i:b)(?=\.)", r"(?:data|dt\.?)\s(?:de\s)?nasc(?:imento)?", "nasc(?:id[oa]|eu|imento)?", r"d\.?n",
) + r"\.?"  # fmt: skip
_BORN_GAP = (
    r"(?:[\s:,.()|=-]|\b(?:the|aos|of|d[aeo]|patient|paciente|mother|m[aã]e|on|in|is|was|em|no|dia|é|foi|a)\b|\([a-z/-]{4,14}\)){0,8}"
    r"(?:[^\n.;]{0,40}?\b(?:on|em)\s)?"
)
_BIRTHDAY = _one_of("birthday", "b-?day", "anivers[aá]rio", "anivers[aá]ria")
_NEAR_BORN = r"(?:[\s:,()=-]|\b(?:the|on|is|was|in|aos|a|o|em|no|na|dia|é|foi)\b){0,10}(?<!\bborn\.\s)"

# The number of a record or a policy: four digits at least, perhaps with letters, points and hyphens between them. A
# year, a range of years, a date, an IP address and a hotline are none.
_YEARS = r"(?:19|20)\d\d(?:[/-](?:(?:19|20)?\d\d))?(?![\w/-])"
_PLAIN_DATE = r"(?:\d\d?[/.]\d\d?[/.](?:\d{4}|\d\d)|\d\d?-\d\d?-\d{4}|(?:19|20)\d\d-\d\d-\d\d)(?!\w)"
_ID = (
    rf"(?:(?<!\w)|(?<=[A-Z])(?=\d))(?!{_YEARS}|{_PLAIN_DATE}|(?:\d{{1,3}}\.){{3}}\d|0[38]00\b)"
    r"(?=(?:[A-Z./-]{0,6}\d){4})[A-Z0-9](?:[A-Z0-9./-]*[A-Z0-9])?(?!\w)"
)
_NAMED_RECORD = _one_of(
    r"m\.?r\.?n", r"(?:medical|hospital|patient|health)\srecord", r"hosp(?:ital)?\s?(?:id|no\b|num|number|#)",
    r"patient\s(?:id|no|number)", "prontu[aá]rio", r"pront\b", "rghc",
)  # fmt: skip
_RECORD = _one_of(
    "chart", r"(?:record|account|encounter|visit|case|file|unit)\s?(?:id|no|num|number|#)", "acct", "hosp",
    r"mr\s?#", r"pt\s(?:id|no|number|#)", r"reg(?:istro|\.)(?:\s(?:hospitalar|d[oa]\spaciente|m[eé]dico))?",
    "atendimento", "rh",
)  # fmt: skip
_NAMED_INSURANCE = _one_of(
    r"(?:mem(?:ber)?|insurance|subscriber|beneficiary|policy|health\splan)(?:ship)?\s?(?:id|no\b|num|number|policy|card|#)",
    "mbi", r"carteir(?:inha|a)(?!\sde\sidentidade)", r"c[oó]d(?:igo|\.)?\s(?:d[oa]\s)?benefici[aá]ri[oa]",
)  # fmt: skip
_INSURANCE = _one_of(
    "policy", "medicare", "medicaid", "conv[eê]nio", "matr[ií]cula", "ap[oó]lice", r"benefici[aá]ri[oa]",
    r"(?:plano|seguro)(?:\sde)?\ssa[uú]de(?:[:\s]+\p{L}+)?",
)  # fmt: skip
_UNIMED = r"\d\s\d{3}\s\d{12}\s\d"
_RECORD_NUMBER = rf"(?:{_ID}|\d{{3}}\s\d{{3}}\s\d{{3}}\b)"
_CARD_NUMBER = rf"(?:{_UNIMED}|(?:[A-Z]{{3}}\s)?{_ID}|\d{{3}}\s\d{{3}}\s\d{{3}}\b)"
_LETTER, _EITHER = "[AC-HJKMNP-RT-Y]", "[AC-HJKMNP-RT-Y0-9]"  # of a Medicare Beneficiary Identifier (CMS)
_MBI = rf"\b[1-9]{_LETTER}{_EITHER}\d-?{_LETTER}{_EITHER}\d-?{_LETTER}{{2}}\d\d\b"

_DASH = r"(?: ?[-/] ?| )"
_CPF = rf"(?<![\d.-])\d{{3}}[. ]?\d{{3}}[. ]?\d{{3}}{_DASH}?\d\d(?![\d-])"
_CPF_FORM = rf"(?<![\d.-])(?:\d{{3}}[. ]\d{{3}}[. ]\d{{3}}{_DASH}\d\d|\d{{9}}-\d\d)(?![\d-])"
_CNPJ = r"(?<![\w.-])[A-Z0-9]{2}\.?[A-Z0-9]{3}\.?[A-Z0-9]{3}/?[A-Z0-9]{4}-?\d\d(?![\w-])"
_CNPJ_FORM = r"(?<![\w.-])[A-Z0-9]{2}\.[A-Z0-9]{3}\.[A-Z0-9]{3}/[A-Z0-9]{4}-\d\d(?![\w-])"
_CNS = r"(?<![\d.-])[12789]\d\d[ .]?\d{4}[ .]?\d{4}[ .]?\d{4}(?![\d-])"
_RG = rf"(?<![\w.-])(?:[A-Z]{{2}}[- ]?)?\d{{1,2}}[. ]?\d{{3}}[. ]?\d{{3}}(?:{_DASH}?[\dX])?\d?(?![\w-])"
_RG_FORM = r"(?<![\w.-])\d\d\.\d{3}\.\d{3}-[\dX](?![\w-])"
_STREET = _one_of("rua", r"r\.", r"av\.", "avenida", "travessa", "alameda", "estrada", "rodovia", "pra[cç]a", "bairro",
                  "endere[cç]o") + r"[^\n]{0,80}?"  # fmt: skip
_SSN = r"(?<!\d)\d{3}(?: ?[-/.] ?| )?\d\d(?: ?[-/.] ?| )?\d{4}(?!\d)"
_CARDS = (
    r"(?<![\d.-])(?:(?:4\d{3}|5[0-8]\d\d|2[2-7]\d\d|6\d{3})(?P<a>[ -]?)\d{4}(?P=a)\d{4}(?P=a)\d{4}|"
    r"3[47]\d\d(?P<b>[ -]?)\d{6}(?P=b)\d{5}|3[068]\d\d(?P<c>[ -]?)\d{6}(?P=c)\d{4})(?!\d)"
)
_EMAIL = r"(?<![\w.+-])[\w.+-]{1,64}(?: @ ?| ?@ | ?[\[(](?:at|arroba)[\])] ?)\w+(?:[.-]\w+)*\.[a-z]{2,}\b"
_US_LOCAL_TELEPHONE = _after(
    _one_of("tel", "telephone", "phone", "cell", "mobile", "call"),
    r"(?<![\d-])[2-9]\d\d-\d{4}(?![\d-])",
    r"(?:[\s:#]|me|back|at|is){0,6}",
)
_LOCAL_TELEPHONE = _after(
    _one_of("tel", "fone", "telefones?", "cel", "celular", "whats(?:app)?", "zap", "recado", "contato"),
    r"(?<!\d)9?[2-9]\d{3}[- ]\d{4}(?!\d)",
    r"(?:[\s:.]|é|da|do|de|\w+a\b){0,6}",
)

_REST = r"[^\s<>\"]*[^\s<>\".,;:)]"  # of an address, without the end of its sentence
_HOST = r"\bhttps?://[^\s<>\"?]+"
_NETWORK = (
    r"(?<![\w-])(?:https?://)?(?:[\w-]{1,40}\.)?(?:(?:facebook|instagram|twitter|tiktok|\bx)\.com/@?"
    r"(?!(?:pages|groups|watch|share|home|p)\b)|linkedin\.com/in/)[\w.%-]{2,}\w"
)
_QUERY = r"[?&](?:user|username|usuario|patient|paciente|email|name|nome|mrn|cpf|login)(?:_?id)?="

# Before a number with three points that is no address: "version 1.2.3.4", an enzyme's EC number, a section.
_NO_ADDRESS = r"(?<!\b(?:version|vers[aã]o|build|release|ec|v|nr|item|se[cç][aã]o|section)\W{0,2})"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1?\d?\d)"
IPV4 = rf"(?<![\w.]){_NO_ADDRESS}(?:{_BYTE}\.){{3}}{_BYTE}(?![\w-]|\.\d)"
NPI = _after(
    _one_of("npi", r"national\sprovider(?:\sidentifier)?", r"provider\s(?:id|no|number|#)"),
    r"(?<!\d)[12]\d{3}[ -]?\d{3}[ -]?\d{3}(?!\d)",
    _LOOSE,
)
SSN = r"(?<![\d-])\d{3}-\d\d-\d{4}(?![\d-])"

FORMS = [
    Form("EMAIL_ADDRESS", _EMAIL),
    Form("PHONE_NUMBER", _LOCAL_TELEPHONE, SAID),
    Form("PHONE_NUMBER", _US_LOCAL_TELEPHONE, SAID),
    Form("PHONE_NUMBER", r"\(?0xx\d\d\)?\s?9?\d{4}-\d{4}(?!\d)"),
    Form("DATE_OF_BIRTH", _after(_BORN, _DATE, _BORN_GAP), SAID, possible_date),
    Form("DATE_OF_BIRTH", _after(_BORN, rf"(?:{'|'.join(_DAY_AND_MONTH)})", _NEAR_BORN), SAID),
    Form("DATE_OF_BIRTH", _after(_BIRTHDAY, r"\d\d?/\d\d?(?![\d/-])", _NEAR_BORN), SAID, possible_date),
    Form(
        "DATE_OF_BIRTH",
        rf"(?<!\d){_DATE}(?=[\s,;]{{0,2}}\(?(?:d\.?o\.?b\b|date\sof\sbirth|nascimento|d\.?n\.?\)))",
        SAID,
        possible_date,
    ),
    Form("MEDICAL_RECORD", _after(_RECORD, _RECORD_NUMBER), SAID),
    Form("MEDICAL_RECORD", _after(_NAMED_RECORD, _RECORD_NUMBER, _LOOSE), SAID),
    Form("INSURANCE_NUMBER", _after(_INSURANCE, _CARD_NUMBER), SAID),
    Form("INSURANCE_NUMBER", _after(_NAMED_INSURANCE, _CARD_NUMBER, _LOOSE), SAID),
    Form("INSURANCE_NUMBER", _MBI),
    Form("BR_CPF", _CPF_FORM, FORM, valid_cpf),
    Form("BR_CPF", _after(_one_of(r"c\.?p\.?f") + r"\.?", _CPF, _LOOSE), SAID, _or_mistyped(valid_cpf)),
    Form("BR_CNPJ", r"(?<![\d.-])\d{8}0{3}\d{3}(?![\d-])", FORM, valid_cnpj),
    Form("BR_CNPJ", _CNPJ_FORM, FORM, valid_cnpj),
    Form("BR_CNPJ", _after(_one_of(r"c\.?n\.?p\.?j") + r"\.?", _CNPJ, _LOOSE), SAID, _or_mistyped(valid_cnpj)),
    Form("BR_CNS", _CNS, FORM, valid_cns),
    Form("BR_CNS", _after(_one_of("cns", r"cart[aã]o\s(?:d[oe]\s)?sus"), _CNS), SAID, _or_mistyped(valid_cns)),
    Form("BR_RG", _RG_FORM, FORM, valid_rg),
    Form(
        "BR_RG",
        _after(_one_of(r"r\.?g", r"registro\sgeral", r"(?:carteira\sde\s)?identidade") + r"\.?", _RG, _LOOSE),
        SAID,
    ),
    Form("BR_CEP", _after(_one_of("cep"), r"(?<!\d)\d\d\.?\d{3}(?: ?- ?| )?\d{3}(?!\d)", _LOOSE), SAID),
    Form("BR_CEP", _after(_STREET, r"(?<![\d.-])\d\d\.?\d{3}-\d{3}(?![\d-])"), SAID),
    Form(
        "US_SSN", _after(r"\b(?:ssn(?![^\W\d_])|ss#|soc(?:ial)?(?:\ssec(?:urity)?)?\b)", _SSN, _LOOSE), SAID, valid_ssn
    ),
    Form("CREDIT_CARD", _CARDS, FORM, valid_luhn),
    Form("URL_WITH_USER", r"\b(?:https?|s?ftp)://[^\s/@]+@" + _REST, SAID),
    Form("URL_WITH_USER", _HOST + r"/~[\w.-]*\w"),
    Form("URL_WITH_USER", _NETWORK),
    Form("URL_WITH_USER", _HOST + r"/(?:users?|u|profile|perfil)/[\w.@%-]*\w"),
    Form("URL_WITH_USER", r"\bhttps?://[^\s<>\"]+" + _QUERY + _REST),
]
