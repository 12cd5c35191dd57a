"""Text that was spoiled on its way: leftover HTML, UTF-8 read as another encoding, lost characters."""

import html
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from html.entities import html5
from textwrap import dedent

EXCERPT = 60  # characters of an example

# HTML's usual elements. `s` is left out: `<s>` is the BOS of many models.
_BLOCKS = (
    "address|article|aside|blockquote|body|center|dd|div|dl|dt|figure|footer|form|h[1-6]|head|header|hr|html|main|nav|"
    "ol|p|pre|section|table|tbody|tfoot|thead|title|tr|ul"
)
_INLINE = (
    "a|abbr|acronym|b|big|br|button|caption|cite|code|col|colgroup|del|em|font|i|iframe|img|input|ins|kbd|label|li|"
    "link|mark|meta|nobr|object|option|q|samp|script|select|small|span|strike|strong|style|sub|sup|td|textarea|th|tt|"
    "u|var"
)
_ALONE_IN_TAG = (
    "nowrap|noshade|compact|disabled|checked|selected|readonly|required|multiple|hidden|controls|async|defer"
)
_ATTRIBUTE = rf"""(?:\s+[\w:-]+\s*=\s*(?:"[^"<]*"|'[^'<]*'|[^\s"'<>]+)|\s+(?:{_ALONE_IN_TAG})(?=[\s/>]))"""
_TAG = re.compile(rf"<(?P<close>/?)(?P<name>{_BLOCKS}|{_INLINE})(?P<attributes>(?:{_ATTRIBUTE})*)\s*/?>", re.IGNORECASE)
_DROPPED = {"<!--": "-->", "<!doctype ": ">", "<script": "</script>", "<style": "</style>"}  # with what they hold
_CUT = re.compile(rf"<(?:{_BLOCKS}|{_INLINE})\s+[\w:-]+\s*=\s*[^<>]*\Z", re.IGNORECASE)  # the text broke off in a tag
_OPENING = re.compile("|".join(_DROPPED), re.IGNORECASE)
_BREAKING = re.compile(rf"(?:{_BLOCKS}|br)\Z")
# Browsers read some entities without `;` too: those that are never parts of an address or a name.
_ACCENTED = "[A-Za-z](?:acute|grave|circ|uml|tilde|cedil|slash|ring)|szlig|AElig|aelig"
_ENTITY = re.compile(
    r"&(?:(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});|#[0-9]{2,5}(?![0-9;=])|[lg]t(?=[0-9])"
    rf"|(?:amp|lt|gt|quot|nbsp|deg|middot|{_ACCENTED})(?![A-Za-z0-9;=]))"
)
# These appear without a closing tag too. Others need one: `<title>` alone may be a place to fill in, and
# `a<b>c` a comparison.
_ALONE = re.compile(
    "br|hr|p|li|t[dhrt]|d[dtl]|h[1-6]|[uo]l|tbody|thead|tfoot|div|span|strong|em|blockquote|pre|font|center|nobr|su[pb]"
)
_BEFORE_WORD = re.compile("b|i|u|big|small|strike|mark|cite")  # these too, where a word begins: ` <b>Rest`

ROUNDS = 4  # text escaped twice has its tags in the second round
_LOST = re.compile("\ufffd|ï¿½")

_RAISED = dict(zip("0123456789+-−–=()ni", "⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁻⁻⁼⁽⁾ⁿⁱ", strict=True))
_LOWERED = dict(zip("0123456789", "₀₁₂₃₄₅₆₇₈₉", strict=True))
_WORD_END = re.compile("st|nd|rd|th|er|re|ère|e|[iè]?ème|de|ste|os|as|r?ra|TM|SM")  # 1st, 2ème, 20ste: no power
_LONGEST_RAISED = 24  # characters
# The blanks before a line of code are noncharacters of Unicode until all tags are gone: strip() keeps these.
_HELD = str.maketrans(" \t", "\ufdd0\ufdd1")
_FREED = str.maketrans("\ufdd0\ufdd1", " \t")
_INDENT = re.compile(r"^[ \t]+(?=\S|\Z)", re.MULTILINE)


@dataclass(frozen=True)
class Damage:
    """One kind of damage: in how many records, and an example with its row, a number or its name."""

    kind: str
    count: int
    row: int | str
    excerpt: str


def find_html(text: str) -> str:
    """Return the first HTML tag or entity of a text with the text around it; empty if there is none."""
    if "<" in text:
        found = [span[0] for span in _dropped(text)] + [match.start() for match in _tags(text)]
        if found:
            return _excerpt(text, min(found))
    if "&" in text:
        for match in _ENTITY.finditer(text):
            if _is_entity(match[0]):
                return _excerpt(text, match.start())
    return ""


def _dropped(text: str) -> list[tuple[int, int]]:
    """Return where comments, scripts and styles begin and end; one that never ends is none."""
    found: list[tuple[int, int]] = []
    endless = set()
    for match in _OPENING.finditer(text):
        closing = _DROPPED[match[0].lower()]
        if closing in endless or (found and match.start() < found[-1][1]):
            continue
        end = re.compile(closing, re.IGNORECASE).search(text, match.end())
        if end is None:
            endless.add(closing)
        else:
            found.append((match.start(), end.end()))
    cut = _CUT.search(text)
    if cut and not (found and cut.start() < found[-1][1]):
        found.append(cut.span())
    return found


def _tags(text: str) -> list[re.Match[str]]:
    found = list(_TAG.finditer(text))
    closed = {match["name"].lower() for match in found if match["close"]}
    return [
        match
        for match in found
        if match["attributes"]
        or (name := match["name"].lower()) in closed
        or _ALONE.fullmatch(name)
        or (_BEFORE_WORD.fullmatch(name) and _begins_word(text, *match.span()))
    ]


def _begins_word(text: str, start: int, end: int) -> bool:
    return text[end : end + 1].isalpha() and (not start or text[start - 1].isspace() or text[start - 1] == ">")


def _is_entity(entity: str) -> bool:
    return entity[1] == "#" or entity[1:] in html5  # which has the names without `;` as well


def remove_html(text: str) -> str:
    """Return text without HTML: tags that break a line as line ends, others as nothing, entities as characters.

    Raised digits stay powers (`10⁹`, else `10^x`), and code in `<pre>` and `<code>` keeps its indentation.
    """
    bare = text
    for _ in range(ROUNDS):
        if not find_html(bare):
            break
        bare = _without_entities(_without_tags(bare))
    return text if bare == text else dedent(bare.translate(_FREED)).strip()


def _without_tags(text: str) -> str:
    if "<" not in text:
        return text

    places = [(start, end, "", "") for start, end in _dropped(text)]
    places += [(*match.span(), match["name"].lower(), match["close"]) for match in _tags(text)]
    pieces: list[str] = []
    shifted: list[tuple[int, str]] = []  # for each open <sup> or <sub>, where its pieces begin and what is before
    position = code = 0
    for start, end, name, close in sorted(places, key=lambda place: (place[0], -place[1])):
        if start < position:
            continue
        if position < start:
            pieces.append(_held(text[position:start]) if code else text[position:start])
        position = end
        if name in ("sup", "sub"):
            if not close:
                shifted.append((len(pieces), pieces[-1][-1] if pieces else ""))
            elif shifted:
                first, before = shifted.pop()
                inner = _shifted(name, "".join(pieces[first:]), before, text[end : end + 1])
                pieces[first:] = [inner] if inner else []
        elif name in ("pre", "code"):
            code = max(0, code - 1) if close else code + 1
        if instead := _instead(name, closing=bool(close)):
            pieces.append(instead)
    bare = "".join([*pieces, text[position:]])
    if bare == text:
        return text
    lines = [line.strip().rstrip(" \t\ufdd0\ufdd1") for line in bare.split("\n")]
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def _held(code: str) -> str:
    return _INDENT.sub(lambda match: match[0].translate(_HELD), code)


def _shifted(name: str, text: str, before: str, after: str) -> str:
    """Return raised or lowered text as plain text that is no other number; `before` and `after` are its neighbours."""
    inner = _without_entities(text).strip()
    if name == "sub":
        joins = before.isdigit() or before in ("/", "⁄") or after.isdigit()  # CO2 is plain, log₁₀5 is not
        return "".join(_LOWERED[char] for char in inner) if inner and joins and set(inner) <= set(_LOWERED) else text
    if not any(char.isalnum() or char in _RAISED for char in inner) or len(inner) > _LONGEST_RAISED or "\n" in inner:
        return text
    if set(inner) <= set(_RAISED):
        return "".join(_RAISED[char] for char in inner)
    if inner in ("o", "a") and before.isalnum():
        return {"o": "º", "a": "ª"}[inner]
    if _WORD_END.fullmatch(inner) or set(inner) <= set(_RAISED.values()):
        return inner
    return f"^{inner}" if re.fullmatch(r"[-+−]?\w+(?:\.\d+)?|\[.*\]", inner) else f"^({inner})"


def _instead(name: str, *, closing: bool) -> str:
    """Return the plain text that replaces a tag."""
    if name == "li":
        return "" if closing else "\n- "
    if name in ("td", "th"):
        return " " if closing else ""
    return "\n" if _BREAKING.match(name) else ""


def _without_entities(text: str) -> str:
    # Not html.unescape on the whole text: it takes `&para` in `?a=1&param=2` for a paragraph sign.
    bare = _ENTITY.sub(lambda match: html.unescape(match[0]) if _is_entity(match[0]) else match[0], text)
    return bare if bare == text else bare.replace("\xa0", " ").strip()


def find_mojibake(text: str) -> str:
    """Return the first words of a text that are UTF-8 read as another encoding; empty if there are none."""
    if text.isascii():
        return ""
    for word in text.split():
        if not word.isascii() and _is_mojibake(word):
            return _excerpt(text, text.index(word)) if undo_mojibake(text) != text else ""
    return ""


@cache
def _is_mojibake(word: str) -> bool:
    from ftfy.badness import is_bad

    return word.strip("\ufffd") != "" and bool(is_bad(f"{word} "))  # a blank may have been a part of the character


def undo_mojibake(text: str) -> str:
    """Return text with UTF-8 that was read as another encoding read right, by ftfy; other text as it is."""
    if text.isascii() or not any(_is_mojibake(word) for word in text.split() if not word.isascii()):
        return text
    from ftfy import fix_encoding

    fixed = fix_encoding(text)
    # A lost character is no better than what stands for it.
    return text if fixed.count("\ufffd") > text.count("\ufffd") else fixed


def find_lost(text: str) -> str:
    """Return the first place of a text where a character was lost (U+FFFD); empty if there is none."""
    match = None if text.isascii() else _LOST.search(text)
    return _excerpt(text, match.start()) if match else ""


REPAIRS: dict[str, Callable[[str], str]] = {"html": remove_html, "mojibake": undo_mojibake}
_FINDERS: dict[str, Callable[[str], str]] = {"html": find_html, "mojibake": find_mojibake, "lost": find_lost}
DAMAGE = tuple(_FINDERS)


def find_damage(records: Iterable[tuple[int | str, tuple[str, ...]]]) -> Iterator[Damage]:
    """Yield the kinds of damage in the texts of rows, each with its count and first example."""
    counts: Counter[str] = Counter()
    first: dict[str, tuple[int | str, str]] = {}
    for number, texts in records:
        for kind, find in _FINDERS.items():
            if place := next(filter(None, map(find, texts)), ""):
                counts[kind] += 1
                first.setdefault(kind, (number, place))
    return (Damage(kind, counts[kind], *first[kind]) for kind in DAMAGE if kind in first)


def _excerpt(text: str, position: int) -> str:
    start = max(0, position - EXCERPT // 3)
    return " ".join(text[start : start + EXCERPT].split())
