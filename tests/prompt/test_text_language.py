"""The language of texts, as `prepare` and `evaluate` find it: by one rule."""

import pytest

from tests.support import scored_models
from toolkit.evaluate import held_out
from toolkit.prepare import language
from toolkit.prompt import text_language
from toolkit.prompt.text_language import language_shares, main_language, sure_language

ENGLISH = scored_models.WORDS
GERMAN = "Trinken Sie viel Wasser, und gehen Sie bei hohem Fieber zum Arzt."
LATIN = "Staphylococcus aureus et Diabetes mellitus"
NORWEGIAN = [
    "Drikk mye vann og hvil deg noen dager. Ring legen hvis feberen varer i mer enn tre dager.",
    "Ta tablettene sammen med mat, og ikke slutt før kuren er ferdig, selv om du føler deg bedre.",
]
DANISH = "Drik rigeligt med vand, og hvil dig et par dage. Ring til lægen, hvis feberen varer mere end tre dage."
PORTUGUESE = "Beba bastante água e procure um médico se a febre durar mais de três dias."


def test_the_language_of_most_texts() -> None:
    assert sure_language(ENGLISH) == "en" and sure_language(GERMAN) == "de" and sure_language("39 °C") == ""
    assert main_language([GERMAN] * 5 + [ENGLISH, "39 °C"]) == "de"
    assert main_language([GERMAN, ENGLISH] * 3) == "" == main_language(["39 °C"])


def test_prepare_and_evaluate_have_one_rule() -> None:
    assert vars(language)["main_language"] is vars(held_out)["main_language"] is text_language.main_language


@pytest.mark.parametrize(
    ("texts", "shares"),
    [
        ([ENGLISH] * 8, {"en": 1.0}),
        ([GERMAN] * 3 + [PORTUGUESE], {"de": 0.75, "pt": 0.25}),
        ([ENGLISH] * 3 + [PORTUGUESE], {"en": 0.75, "pt": 0.25}),
        ([ENGLISH, PORTUGUESE, LATIN, LATIN, "39 °C"], {"und": 0.5, "pt": 0.25, "en": 0.25}),
        ([ENGLISH] * 19 + [LATIN], {"en": 0.95, "und": 0.05}),
        ([*NORWEGIAN, DANISH, GERMAN], {"no": 0.75, "de": 0.25}),
        ([f"Three days for {name}." for name in ("migraine", "dehydration", "headache", "insomnia", "heartburn")],
         {"en": 1.0}),
        (["39 °C", ""], {}),
        ([], {}),
    ],
)  # fmt: skip
def test_the_share_of_each_language(texts: list[str], shares: dict[str, float]) -> None:
    assert language_shares(texts) == shares


def test_for_plain_english_no_model_is_loaded() -> None:
    def never(text: str) -> tuple[str, float]:
        raise AssertionError(text)

    assert language_shares([ENGLISH] * 95 + ["x" * 30] * 5, never)["en"] > 0.9
