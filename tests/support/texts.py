"""Texts that tokenizers find hard, and what of a text is the same for llama.cpp."""

import unicodedata

from hypothesis import strategies as st

NASTY = [
    "",
    " ",
    "\n",
    "\r\n\r\n",
    " \t \n  \n   x",
    "Hello, world",
    "hello  world   and    more     spaces ",
    "0 12 345 6789 1234567890 3.14 1,000,000 ½ ² Ⅷ ٣",
    "I'm you're HE'S we'Ve it'LL 'tis ''''",
    "a\u00a0b\u2003c\u200bd\u3000e",
    "e\u0301 ä Å ﬁ Ǆ",
    "🙂 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 1️⃣",
    "中文，日本語。한국어 ไทย ខ្មែរ हिन्दी עברית العربية",
    "<|end_of_text|> and <|begin_of_text|><|pad|>",
    "### Response:\n<|eot_id|><|im_end|>",
    "{{ .Prompt }} {% if x %} $HOME `ls` \\n \\\\",
    "x" * 300,
    "=" * 70 + "-" * 70,
    "\x00\x01\x7f",
    "line one\rline two\x0bline three\x0cfour\u2028five\u2029six\x85",
    "camelCase snake_case SCREAMING kebab-case",
    "a\ufe0f\u20e3 \U0001f9d1\u200d\U0001f4bb",
]
CHARACTERS = (
    "abcXYZ0123456789 \t\n\r'\"`.,;:!?-_=+/\\|<>(){}[]#$%&*@~^ \u00a0éßñçøЖдωλ中国日本한국กขא🙂👍🏽\u200d\ufe0f½²"
)
PIECES = ["  ", "\r\n", "'ll", "'S", "<|", "|>", "<|end_of_text|>", "123", "don't", " the", "\n\n"]
ALPHABET = st.sampled_from([*CHARACTERS, *PIECES])
ACCENTED = "हिन्दी हिन्दी cafe\u0301 cafe\u0301s ÉCOLE ÉCOLES ÀÉÈ STRAßE "


def normal(text: str, pre: str) -> str:
    """Return the text that is the same for llama.cpp.

    Qwen's tokenizer composes characters first (NFC), llama.cpp does not. Its patterns of tekken and gpt-4o know no
    combining marks, and take every letter outside a-z and A-Z for upper and lower case at once.
    """
    if pre in ("tekken", "gpt-4o"):
        text = "".join(c for c in text if c.isascii() or (unicodedata.category(c)[0] != "M" and c.lower() == c.upper()))
    return unicodedata.normalize("NFC", text) if pre in ("qwen2", "qwen35") else text
