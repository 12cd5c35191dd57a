from datetime import UTC, date, datetime, time
from decimal import Decimal

import pytest

from toolkit.prepare.cells import cell_text, is_blank, is_null_word, joined_text, name_key


@pytest.mark.parametrize(
    "text",
    [
        "nan",
        "NaN",
        "None",
        "NONE",
        "null",
        "N/A",
        "n/a",
        "NA",
        "#N/A",
        "<NA>",
        "-",
        "--",
        "—",
        ".",
        "…",
        "?",
        "NaT",
        "\\N",
        "#REF!",
        "#VALUE!",
        "#DIV/0!",
        "#NAME?",
        "#NUM!",
        "#NULL!",
        "#SPILL!",
        "#VALOR!",
        "#¿NOMBRE?",
        "#BEZUG!",
        "#NV",
        "#N/D",
        "Err:502",
        "########",
        "(blank)",
        "undefined",
        "(null)",
        "NIL",
        "N / A",
        "n. a.",
        "N/A\u200b",
        "\u200b",
        "#DIV/0",
        "#ДЕЛ/0!",
        "#ЗНАЧ!",
        "#ЧИСЛО!",
        "#ИМЯ?",
        "#Н/Д",
        "#I/T",
        "#值!",
        "#名前?",
        "#ΑΞΙΑ!",
        "#SZÁM!",
        "#DĚLENÍ_NULOU!",
        "#YOK",
    ],
)
def test_null_words(text: str) -> None:
    assert is_null_word(text)


@pytest.mark.parametrize(
    "text",
    [
        "Na",
        "None of them.",
        "NA is sodium",
        "no",
        "0",
        "+",
        "- 5",
        "a.",
        "#1",
        "#1!",
        "Nanny",
        "Annul",
        "#hashtag",
        "-1",
        "5/7",
        "Question: N/A?",
        "nan " * 20,
        "No.",
        "Y",
        "±",
        "%",
        "C#",
        "Err:5",
        "null and void",
        "",
        "#Да!",
        "#да/нет",
        "#ΑΞΙΑ",
        "#C!",
        "#值",
        "#A B!",
        "n / a ratio",
        "\u200bNa",
    ],
)
def test_what_is_an_answer(text: str) -> None:
    assert not is_null_word(text)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (["a"], "a"),
        ([" a\r\nb "], "a\nb"),
        ([7], "7"),
        ([None], ""),
        (["a", "b"], None),
        ([["a"]], None),
        ([{"text": "a"}], None),
        ([], ""),
        ({}, ""),
        ([[]], None),
        (float("inf"), ""),
        ([float("-inf")], ""),
        (Decimal("NaN"), ""),
        (1e308, "1e+308"),
        ("\u200b \ufeff", ""),
        ("\u200ba", "\u200ba"),
        (Decimal("12.50"), "12.50"),
        ([Decimal(7)], "7"),
        (date(2024, 2, 29), "2024-02-29"),
        (datetime(2024, 2, 29, 8, 30, tzinfo=UTC), "2024-02-29 08:30:00+00:00"),
        (time(8, 30), "08:30:00"),
        (b"a", None),
    ],
)
def test_cells_as_text(value: object, text: str | None) -> None:
    assert cell_text(value) == text


@pytest.mark.parametrize("value", ["", " \u00a0", "\u200b", None, float("nan"), [], {}, [""], [None]])
def test_blank_cells(value: object) -> None:
    assert is_blank(value)


@pytest.mark.parametrize("value", ["a", "nan", 0, False, ["", ""], {"a": ""}])
def test_filled_cells(value: object) -> None:
    assert not is_blank(value)


def test_context_of_what_is_no_text_is_none() -> None:
    assert joined_text([["a", "b"], "c"]) is None and joined_text({"a": ["b", "c"]}) is None


def test_names_are_the_same_case_and_spaces_apart() -> None:
    assert {name_key(name) for name in ("Long Answer", " longanswer\u00a0", "LONG\u200b  ANSWER")} == {"longanswer"}
    assert name_key("long_answer") != name_key("longanswer")
