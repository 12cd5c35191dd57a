"""Which encoding a text has that is not UTF-8: the one in which its words are made of one language's letters.

Every candidate reads the same bytes. What it reads is rated: letters of no alphabet, rare ones, capitals and signs
within words. Detectors of any text do worse on a few short lines, and do not say how sure they are.
"""

import codecs
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

ENOUGH = 65536  # bytes that are looked at
CLOSE = 0.03  # odd characters for each one beyond ASCII: a second encoding that is no further behind is named too
DOUBTFUL = 0.3  # from here on the best one is a guess
FEW = 0.04  # letters beyond ASCII of all letters: in Western text only, such as English with a few names
USUAL = 0.15  # mean rank of the letters of a text, as a share of its alphabet in the order of their frequency

# The letters of each language beyond ASCII, without its rare ones.
_LATIN = {
    "Western": ("áâãàçéêíóôõúü", "áéíóúüñ", "àâæçéèêëîïôœùûü", "äöüß", "àèéìíòóù", "áèéëïíóöü", "åäöé", "åæøé",
                "áðéíóúýþæö", "àçéèíïóòúü"),
    "Central": ("ąćęłńóśźż", "áčďéěíňóřšťúůýž", "áäčďéíľňóôšťúýž", "áéíóöőúüű", "čćđšž", "ăâîșțşţ"),
    "Turkish": ("çğıöşüâi̇",),
    "Baltic": ("āčēģīķļņšūž", "ąčęėįšųūž", "äõöü"),
}  # fmt: skip
# The letters of other scripts by their frequency, for each language.
_SCRIPTS = {
    "Cyrillic": (
        "оеаинтсрвлкмдпуяыьгзбчйхжшюцщэфъё",
        "оаниітврекслдпумязьбгчхйїцжшюєщф",
        "аиоетнрсвлпкдъмзягбучцжщшйхфью",
        "аоиентрсјвулпкмдзгбчшћжцхљњђфџ",
    ),
    "Greek": ("αοιετσνηςρπκμλυγδωχθφβξζψ",),
    "Hebrew": ("יוהלאתמרשנבדעקחפכםגסצטזןךףץ",),
    "Arabic": ("اليمونرتبةعدسفهكقحجأشصطخزإذثضغظىءئآؤ",),
    "Thai": ("าน่รอกเ้งมยลวีดทัสติะปุบคหจูพแช็ืไขใำ์โถผึศธซณภฐญฮฝฉฒฏฎฆฬ",),
}
_TYPE = frozenset("‘’‚“”„†•…–—«»‹›¿¡°ºª§©®™€£¥½¼¾²³µ×÷±·≥≤№，。、；：？！（）《》「」『』～・ー")
_JOINING = frozenset("’–—·・ー")  # may stand between two letters
_OPENING = frozenset("„‚«‹¡¿€£¥§")  # never follow a letter

Rate = Callable[[str, Counter[str]], float]


@dataclass(frozen=True)
class Reading:
    """An encoding by Python's and iconv's name, and how odd a text is in it: 0 for none, 1 for every character."""

    python: str
    iconv: str
    odd: float


def _japanese(text: str, letters: Counter[str]) -> float:
    kana = sum(count for char, count in letters.items() if "ぁ" <= char <= "ヿ")
    rare = sum(count for char, count in letters.items() if not ("ぁ" <= char <= "ヿ" or _leads(char, "euc_jp", 0xCF)))
    return rare + max(0.0, letters.total() - 5 * kana) + _lonely(text)


def _korean(text: str, letters: Counter[str]) -> float:
    return sum(count for char, count in letters.items() if not "가" <= char <= "힣") + _lonely(text)


def _chinese(text: str, letters: Counter[str]) -> float:
    simple = sum(count for char, count in letters.items() if not _leads(char, "gb2312", 0xD7))
    late = sum(count for char, count in letters.items() if _leads(char, "gb2312", 0xD7, 0xC9))
    if late < 0.05 * letters.total():  # a third of Chinese text: those below are Korean's syllables
        simple += letters.total() // 2
    full = sum(count for char, count in letters.items() if not _leads(char, "big5", 0xC6, 0xA4))
    early = sum(count for char, count in letters.items() if _leads(char, "big5", 0xAF, 0xA4))
    if early < 0.1 * letters.total():  # half of Chinese text: Korean's syllables are above
        full += letters.total() // 2
    return min(simple, full) * 2 + _lonely(text)


def _leads(char: str, encoding: str, last: int, first: int = 0xB0) -> bool:
    """Tell whether the first byte of a character is in a range: those of the common ones have their own."""
    try:
        return first <= char.encode(encoding)[0] <= last
    except UnicodeEncodeError:
        return False


def _lonely(text: str) -> float:
    """Count East Asian letters that stand alone, by half where no Latin word is next to them: two letters in one."""
    odd = 0.0
    for before, char, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        if not char.isascii() and before.isascii() and after.isascii():
            odd += 1.0 if before.isalpha() or after.isalpha() else 0.5
    return odd


def _of_script(name: str) -> Rate:
    alphabets = [{letter: rank / len(letters) for rank, letter in enumerate(letters)} for letters in _SCRIPTS[name]]

    def rate(text: str, letters: Counter[str]) -> float:
        plain = Counter[str]()
        for char, count in letters.items():
            plain[unicodedata.normalize("NFD", char.lower())[0] if name == "Greek" else char.lower()] += count
        odd = []
        for ranks in alphabets:
            known = {char: count for char, count in plain.items() if char in ranks}
            rank = sum(ranks[char] * count for char, count in known.items()) / max(1, sum(known.values()))
            odd.append(plain.total() - sum(known.values()) + max(0.0, rank - USUAL) * plain.total())
        return min(odd) + _within_words(text, mixed=True)

    return rate


def _of_latin(name: str) -> Rate:
    alphabets = [frozenset(letters) for letters in _LATIN[name]]

    def rate(text: str, letters: Counter[str]) -> float:
        others = [
            sum(count for char, count in letters.items() if char.lower() not in alphabet) for alphabet in alphabets
        ]
        return min(others) + _within_words(text, mixed=False)

    return rate


def _within_words(text: str, *, mixed: bool) -> float:
    """Count capitals and signs within words, and letters next to those of ASCII where a script does not mix."""
    odd = 0.0
    for before, char, after in zip(f" {text}", text, f"{text[1:]} ", strict=False):
        if char.isascii():
            continue
        if not _is_letter(char):
            joins = before.isalpha() and after.isalpha() and char not in _JOINING
            odd += joins or (before.isalpha() and char in _OPENING)
        elif before.isalpha():
            odd += 1.0 if char.isupper() and before.islower() else 0.4 if char.isupper() else 0.0
            odd += mixed and before.isascii()
    return odd


def _is_letter(char: str) -> bool:
    return unicodedata.category(char)[0] in "LM" and char not in _TYPE  # µ and º are letters to Unicode


def _of_no_text(chars: list[str]) -> float:
    """Count what no text holds, such as controls and lines of boxes, and half of each uncommon sign."""
    odd = 0.0
    for char in chars:
        if not _is_letter(char) and char not in _TYPE and not char.isspace():
            strange = unicodedata.category(char) in ("Cc", "Cn", "Co", "Cs") or "─" <= char <= "▟"
            odd += 2.0 if strange else 0.5
    return odd


# By Python's name: iconv's name and how what it reads is rated, the likelier of two that read the same first.
_CANDIDATES: dict[str, tuple[str, Rate]] = {
    "cp932": ("CP932", _japanese),
    "euc_jp": ("EUC-JP", _japanese),
    "cp949": ("CP949", _korean),
    "gb18030": ("GB18030", _chinese),
    "big5": ("BIG5", _chinese),
    "cp1252": ("WINDOWS-1252", _of_latin("Western")),
    "mac_roman": ("MACINTOSH", _of_latin("Western")),
    "cp850": ("CP850", _of_latin("Western")),
    "iso8859_15": ("ISO-8859-15", _of_latin("Western")),
    "cp1250": ("WINDOWS-1250", _of_latin("Central")),
    "iso8859_2": ("ISO-8859-2", _of_latin("Central")),
    "cp852": ("CP852", _of_latin("Central")),
    "mac_latin2": ("MAC-CENTRALEUROPE", _of_latin("Central")),
    "cp1254": ("WINDOWS-1254", _of_latin("Turkish")),
    "cp1257": ("WINDOWS-1257", _of_latin("Baltic")),
    "cp1251": ("WINDOWS-1251", _of_script("Cyrillic")),
    "koi8_r": ("KOI8-R", _of_script("Cyrillic")),
    "koi8_u": ("KOI8-U", _of_script("Cyrillic")),
    "cp866": ("CP866", _of_script("Cyrillic")),
    "iso8859_5": ("ISO-8859-5", _of_script("Cyrillic")),
    "mac_cyrillic": ("MAC-CYRILLIC", _of_script("Cyrillic")),
    "cp1253": ("WINDOWS-1253", _of_script("Greek")),
    "iso8859_7": ("ISO-8859-7", _of_script("Greek")),
    "cp1255": ("WINDOWS-1255", _of_script("Hebrew")),
    "cp1256": ("WINDOWS-1256", _of_script("Arabic")),
    "iso8859_6": ("ISO-8859-6", _of_script("Arabic")),
    "cp874": ("CP874", _of_script("Thai")),
}
_DENSE = ("cp1250", "iso8859_2", "cp852", "mac_latin2", "cp1254", "cp1257")  # of languages with many such letters
_FALLBACK = Reading("cp1252", "WINDOWS-1252", 1.0)


def guess_encodings(lines: Sequence[bytes]) -> list[Reading]:
    """Return the encoding of lines that are not UTF-8, and a second one that reads other text and is about as likely.

    An encoding in which a byte has no meaning is none.
    """
    content = b"\n".join(lines)[:ENOUGH]
    content = content[: content.rfind(b"\n")] if len(content) == ENOUGH and b"\n" in content else content
    found: list[tuple[Reading, str]] = []
    for name, (iconv, rate) in _CANDIDATES.items():
        try:
            text = content.decode(name)
        except UnicodeDecodeError:
            continue
        foreign = [char for char in text if not char.isascii()]
        letters = Counter(filter(_is_letter, foreign))
        if name in _DENSE and letters.total() < FEW * sum(map(str.isalpha, text)):
            continue
        odd = rate(text, letters) + _of_no_text(foreign)
        found.append((Reading(name, iconv, odd / max(1, len(foreign))), text))
    if not found:
        return [_FALLBACK]
    found.sort(key=lambda one: one[0].odd)  # stable: the likelier first
    best, text = found[0]
    near = CLOSE if best.odd < DOUBTFUL else DOUBTFUL
    others = [reading for reading, other in found[1:] if other != text and reading.odd - best.odd < near]
    return [best, *others[:1]]


def find_wide_encoding(sample: bytes) -> str:
    """Return iconv's name where a character takes two or four bytes and no mark in front says so; empty elsewhere.

    A NUL is a part of each ASCII character there; text of any script has some, as delimiters and line ends.
    """
    if sample.count(0) * 50 < len(sample):
        return ""
    for name in ("UTF-32LE", "UTF-32BE", "UTF-16LE", "UTF-16BE"):
        try:
            text = codecs.getincrementaldecoder(name)().decode(sample)  # its end may be half a character
        except UnicodeDecodeError:
            continue
        known = sum(char.isalnum() or char.isspace() or char in _TYPE or char.isprintable() for char in text)
        plain = sum(char.isascii() for char in text)
        if "\0" not in text and known > 0.98 * len(text) and plain > 0.02 * len(text):
            return name
    return ""
