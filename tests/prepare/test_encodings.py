"""The encoding of a text that is not UTF-8, in many languages, from a few lines of it."""

import pytest

from toolkit.prepare.encodings import find_wide_encoding, guess_encodings

# Each language with the encodings that its files come in.
TEXTS = {
    "Não é febre? É água à mesa, não há médico. A infecção é viral.": ["cp1252", "mac_roman", "cp850"],
    "Le médecin a prescrit un régime sévère à l'hôpital où l'on soigne déjà.": ["cp1252", "mac_roman", "cp850"],
    "Was hilft gegen Übelkeit? Ruhe, Wärme und genügend Flüssigkeit, außerdem Tee.": ["cp1252", "mac_roman", "cp850"],
    "¿Qué ayuda contra la tos? El niño está enfermo según el médico.": ["cp1252", "mac_roman", "iso8859_15"],
    "Vad hjälper mot hosta? Vila och vatten på kvällen, även för äldre": ["cp1252", "mac_roman", "cp850"],
    "Hvad hjælper mod hoste? Hvile og vand på sygehuset, også øl": ["cp1252", "mac_roman"],
    "Crohn’s disease – what is it? “It’s inflammatory”…": ["cp1252", "mac_roman"],
    "Take 5 µg at 38 °C, ½ tablet": ["cp1252"],
    "咳に効くものは何ですか？休息と水です。カタカナとひらがなを使います。": ["cp932", "euc_jp"],
    "咳嗽怎么办？多喝水，休息。这是一种常见的疾病，需要看医生。": ["gb18030", "gbk"],
    "咳嗽怎麼辦？多喝水，休息。這是一種常見的疾病，需要看醫生。": ["big5"],
    "기침에 도움이 되는 것은 무엇입니까? 물을 마시고 쉬세요.": ["cp949", "euc_kr"],
    "Что помогает от кашля? Отдых и вода": ["cp1251", "koi8_r", "iso8859_5", "mac_cyrillic", "cp866"],
    "Що допомагає від кашлю? Відпочинок і вода, її треба пити": ["cp1251", "koi8_u", "mac_cyrillic"],
    "Какво помага при кашлица? Почивка и топла вода": ["cp1251"],
    "Τι βοηθά στον βήχα; Ξεκούραση και νερό, είναι καλό για την υγεία.": ["cp1253", "iso8859_7"],
    "Co pomaga na kaszel? Świeże powietrze i dużo snu, żółć, łącznie.": ["cp1250", "iso8859_2"],
    "Co pomáhá proti kašli? Teplá voda, příliš žluťoučký kůň úpěl.": ["cp1250", "iso8859_2", "cp852"],
    "Mi segít a köhögés ellen? Pihenés és sok folyadék, őszi fűszerek": ["cp1250", "iso8859_2"],
    "Öksürüğe ne iyi gelir? Dinlenmek ve ılık su içmek, ağrı için": ["cp1254", "iso8859_9"],
    "Kas padeda nuo kosulio? Šiltas vanduo, ąžuolų žievė, įkvėpimas": ["cp1257"],
    "מה עוזר נגד שיעול? מנוחה ומים חמים.": ["cp1255"],
    "ما الذي يساعد على السعال؟ الراحة والماء الدافئ.": ["cp1256"],
    "อะไรช่วยแก้ไอได้? พักผ่อนและดื่มน้ำ": ["cp874"],
}
CASES = [(text, encoding) for text, encodings in TEXTS.items() for encoding in encodings]


@pytest.mark.parametrize("lines", [1, 4])
@pytest.mark.parametrize(("text", "encoding"), CASES, ids=[f"{encoding}: {text[:12]}" for text, encoding in CASES])
def test_the_first_guess_reads_the_text(text: str, encoding: str, lines: int) -> None:
    content = f"{text},{text}".encode(encoding)
    found = guess_encodings([content] * lines)
    assert content.decode(found[0].python) == f"{text},{text}"
    assert len(found) <= 2 and found[0].odd <= found[-1].odd


def test_what_no_encoding_explains_is_still_answered() -> None:
    assert guess_encodings([bytes(range(128, 256)) * 3]) and guess_encodings([])


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("text", [text for text in TEXTS if "µ" not in text])
def test_two_or_four_bytes_a_character_are_known_without_a_mark(text: str, encoding: str) -> None:
    content = ("question,answer\n" + f"{text},{text}\n" * 9).encode(encoding)
    assert find_wide_encoding(content) == encoding.upper().replace("-LE", "LE").replace("-BE", "BE")
    assert find_wide_encoding(content[: len(content) // 8 * 8 - 3]) == find_wide_encoding(content)


@pytest.mark.parametrize("content", [b"a\0b\0\0\0c", bytes(range(256)) * 9, b"question,answer\nq,a\n" + b"\0" * 8, b""])
def test_other_bytes_with_nuls_are_none(content: bytes) -> None:
    assert find_wide_encoding(content) == ""
