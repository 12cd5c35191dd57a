"""The bound of a record's tokens is never below its tokens, for all kinds of words and pre-tokenizers."""

import dataclasses
import json
from collections.abc import Iterator
from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core.config import Config
from toolkit.formats.pretokenizers import PRE_TOKENIZERS
from toolkit.prepare import bounds
from toolkit.prepare.bounds import TokenBound
from toolkit.prepare.fit import _lengths
from toolkit.prompt.format import prompt_format
from toolkit.prompt.renderings import render
from toolkit.prompt.tokenizer import Tokenizer

PIECES = st.sampled_from(
    [
        "a", "The patient", "isn't", " ", "  ", "\n", "\n\n- ", "\t", ".", "...", "!?", "12345", "é", "e\u0301", "水",
        "🙂", "\u00a0", "\u0085", "<tool>", "two words", "##", "_x_", "\r\n", "ǅ", "\x1c", " ?", "/", "'LL",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, min_size=1, max_size=40).map("".join)


def with_steps(tokenizer: Tokenizer, name: str) -> Tokenizer:
    """Return the vocabulary behind another pre-tokenizer."""
    from tokenizers import Tokenizer as Encoder

    whole = json.loads(tokenizer.encoder.to_str())
    one = PRE_TOKENIZERS[name]
    whole["normalizer"] = one.normalizer
    whole["pre_tokenizer"] = {
        "type": "Sequence",
        "pretokenizers": [{"trim_offsets": True, **step} for step in one.steps],
    }
    encoder = Encoder.from_str(json.dumps(whole))
    encoder.encode_special_tokens = True
    return dataclasses.replace(tokenizer, encoder=encoder)


@pytest.fixture(params=sorted(PRE_TOKENIZERS), scope="module")
def known(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bounds, "KEPT", 10)  # words are forgotten and counted again
        yield with_steps(tokenizer, request.param)


@given(
    question=TEXTS, answers=st.lists(TEXTS, min_size=1, max_size=5), turns=st.lists(st.tuples(TEXTS, TEXTS), max_size=2)
)
def test_no_record_has_more(known: Tokenizer, question: str, answers: list[str], turns: list[tuple[str, str]]) -> None:
    prompt = render(prompt_format(Config().prompt), question, None, turns, known.eos_text)
    bound, records = TokenBound(known), [(prompt, answer) for answer in answers]
    for number, tokens in enumerate(_lengths(records, known)):
        assert number in bound.over(tokens - 1, records)


def test_long_answers_that_fit_are_not_encoded(known: Tokenizer) -> None:
    answer = "The patient was treated with great care. " * 50
    prompt = render(prompt_format(Config().prompt), "How?")
    (tokens,) = _lengths([(prompt, answer)], known)
    assert TokenBound(known).over(tokens + 80, [(prompt, answer)]) == []
    assert tokens + 80 < len(answer)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}},
        {"normalizer": {"type": "Lowercase"}},
        {"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "  "}},
    ],
)
def test_words_of_other_tokenizers_are_not_counted_apart(tokenizer: Tokenizer, change: dict[str, object]) -> None:
    """Without a regex for words, a vocabulary may join several of them, so no blank is a border."""
    from tokenizers import Tokenizer as Encoder

    encoder = Encoder.from_str(json.dumps({**json.loads(tokenizer.encoder.to_str()), **change}))
    other = dataclasses.replace(tokenizer, encoder=encoder)
    record = (render(prompt_format(Config().prompt), "How?"), "The patient was treated. " * 9)
    (tokens,) = _lengths([record], other)
    size = len((record[0].text + record[1]).encode())
    assert TokenBound(other).over(size - 1, [record]) == [0] and tokens < size


def test_an_added_token_of_two_words_is_one(tokenizer: Tokenizer) -> None:
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Encoder

    encoder = Encoder.from_str(tokenizer.encoder.to_str())
    encoder.add_tokens([AddedToken("two words", special=False)])
    other = dataclasses.replace(tokenizer, encoder=encoder)
    prompt = render(prompt_format(Config().prompt), "How?")
    record = (prompt, " ".join(chain.from_iterable(["two words", "and"] for _ in range(30))))
    size = len((record[0].text + record[1]).encode())
    assert TokenBound(other).over(size - 1, [record]) == [0]


def spelled_out(tokenizer: Tokenizer, **change: object) -> Tokenizer:
    """Return a byte-level vocabulary whose tokens are single bytes: the most tokens that a text can have."""
    from tokenizers import Tokenizer as Encoder
    from tokenizers import models, pre_tokenizers

    alphabet = {char: number for number, char in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    encoder = Encoder(models.BPE(alphabet, []))
    encoder.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    whole = json.loads(encoder.to_str()) | change
    return dataclasses.replace(tokenizer, encoder=Encoder.from_str(json.dumps(whole)), controls={})


SPACED = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}
BYTES = {**SPACED, "add_prefix_space": False}
DIGITS = {"type": "Digits", "individual_digits": True}
WIDE = {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True}
X = {"id": 256, "content": "x", "single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


@pytest.mark.parametrize(
    ("change", "answer"),
    [
        ({}, "x1é " * 30),
        ({"normalizer": {"type": "Sequence", "normalizers": []}}, "x1é " * 30),
        ({"normalizer": {"type": "NFKD"}}, "é ﷺ " * 30),
        ({"normalizer": {"type": "Replace", "pattern": {"String": " "}, "content": "   "}}, "a b " * 30),
        ({"normalizer": {"type": "Prepend", "prepend": "▁"}}, "a b " * 30),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [DIGITS, SPACED]}}, "123456" * 30),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [WIDE, BYTES]}}, "a b " * 30),
        ({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [BYTES, BYTES]}}, "é " * 30),
        ({"pre_tokenizer": SPACED, "added_tokens": [{**X, "special": False}]}, "xa" * 30),
    ],
)
def test_what_writes_more_than_the_text_has_is_counted(
    tokenizer: Tokenizer, change: dict[str, object], answer: str
) -> None:
    other = spelled_out(tokenizer, **change)
    record = (render(prompt_format(Config().prompt), "How?"), answer)
    (tokens,) = _lengths([record], other)
    assert TokenBound(other).over(tokens - 1, [record]) == [0]


def test_an_added_token_that_ends_with_a_blank_takes_it_from_the_next_word(tokenizer: Tokenizer) -> None:
    """`patient` alone is more tokens than ` patient`."""
    from tokenizers import AddedToken
    from tokenizers import Tokenizer as Encoder

    encoder = Encoder.from_str(tokenizer.encoder.to_str())
    encoder.add_tokens([AddedToken("the ", special=False)])
    other = dataclasses.replace(tokenizer, encoder=encoder)
    record = (render(prompt_format(Config().prompt), "How?"), "the patient was " * 60)
    (tokens,) = _lengths([record], other)
    assert TokenBound(other).over(tokens - 1, [record]) == [0]


def test_long_words_do_not_fill_the_memory(known: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where letters are not ASCII, no blank is a border: some words are whole sentences."""
    monkeypatch.setattr(bounds, "KEPT", 5000)
    bound, form = TokenBound(known), prompt_format(Config().prompt)
    for number in range(60):
        bound.over(1, [(render(form, "Как?"), f"a b{'слово слово ' * 80}{number} c d e")])
    assert sum(map(len, bound._of_word)) < 5000 + 2000
