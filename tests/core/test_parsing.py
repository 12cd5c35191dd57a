"""Hostile JSON and TOML end in one line that names the key, and never in an error that nobody expected."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from toolkit.core import config_file
from toolkit.core.errors import USAGE, ToolkitError
from toolkit.core.manifest import read_manifest
from toolkit.core.parsing import parse_json, parse_toml, read_bounded, read_json
from toolkit.core.records import Records
from toolkit.core.run_folder import RunFolder

DEEP = "[" * 5000 + "]" * 5000
HOSTILE = [
    (f'{{"a": 1, "rope": {DEEP}}}', "`rope` is nested more than 100 deep"),
    ('{"rope": ' + "[" * 101 + "]" * 101 + "}", "`rope` is nested more than 100 deep"),
    ('{"a": {"b": [0, ' + "7" * 5000 + "]}}", "`a.b[1]` is a number with too many digits"),
    ('{"a": ' + "7" * 41 + "}", "`a` is a number with too many digits"),
    ('{"a": {"theta": 1e400}}', "`a.theta` is infinite"),
    ('{"size": -Infinity}', "`size` is infinite"),
    ('{"size": NaN}', "`size` is not a number"),
    ('{"eos_token": "\\ud800"}', "`eos_token` is not text"),
    ('{"eos_token": ["\\ud83d", "\\ude00"]}', "`eos_token[0]` is not text"),
    ('{"\\udfff": 1}', "the name of `\\udfff` is not text"),
    (b'{"a": "M\xff"}', "not UTF-8 text: byte 0xff at offset 8"),
    ("[" * 200_000, "nested more than 100 deep"),
]


@pytest.mark.parametrize(("text", "said"), HOSTILE)
def test_json_names_what_is_out_of_bounds(text: Any, said: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError) as problem:
        parse_json(text)
    assert said in str(problem.value)
    path = tmp_path / "config.json"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ToolkitError) as found:
        read_json(path)
    assert said in found.value.message and str(path) in found.value.message and found.value.hint
    assert "\n" not in found.value.message and len(found.value.message) < 400


def test_what_models_really_have_is_read() -> None:
    assert parse_json('{"model_max_length": 1000000000000000019884624838656}')["model_max_length"] == int(1e30)
    assert parse_json('{"a": "\\ud83d\\ude00"}') == {"a": "😀"}
    assert parse_json("[" * 100 + "]" * 100)
    assert parse_json('{"a": 1, "b": [1.5, null, true]}') == {"a": 1, "b": [1.5, None, True]}


def test_rows_of_users_may_hold_what_settings_may_not() -> None:
    row = parse_json('{"a": NaN, "b": "\\ud800", "c": ' + "1" * 60 + "}", data=True)
    assert row["a"] != row["a"] and row["b"] == "\ud800" and row["c"] == int("1" * 60)
    for text in ('{"c": ' + "1" * 5000 + "}", DEEP):
        with pytest.raises(ValueError, match=r"too many digits|deep"):
            parse_json(text, data=True)


TEXT = st.text(st.characters(exclude_categories=["Cs"]))
NUMBERS = st.integers(-(10**38), 10**38) | st.floats(allow_nan=False, allow_infinity=False)


@pytest.mark.slow
@given(st.recursive(NUMBERS | TEXT | st.none(), lambda inner: st.lists(inner) | st.dictionaries(TEXT, inner)))
def test_the_reader_gives_what_json_gives(value: Any) -> None:
    assert parse_json(json.dumps(value)) == value
    assert parse_json(json.dumps(value, ensure_ascii=False).encode()) == value


@given(st.binary(max_size=60))
def test_any_bytes_are_read_or_refused(content: bytes) -> None:
    for read in (lambda: parse_json(content), lambda: parse_toml(content.decode("latin-1"))):
        try:
            read()
        except ValueError as exc:
            assert str(exc)


SETTINGS = [
    ("[data]\nseed = 0x" + "f" * 4000, "`data.seed` is a number with too many digits"),
    ("[data]\nseed = " + "1" * 5000, "`seed` is a number with too many digits"),
    ("[data]\nseed = 9223372036854775808", "`data.seed` is a number with too many digits"),
    ("[train]\nlearning_rate = 1e400", "`train.learning_rate` is infinite"),
    ("[train]\nlearning_rate = nan", "`train.learning_rate` is not a number"),
    ("[export]\nquantizations = " + DEEP, "`quantizations` is nested more than 100 deep"),
    ("[prompt]\nfoo = " + "{a = " * 3000 + "1" + "}" * 3000, "`foo` is nested more than 100 deep"),
    ("a." * 2000 + "b = 1", "is nested more than 100 deep"),
    (b'[run]\nname = "M\xff"', "is not UTF-8 text"),
    ("[run\n", "is not valid TOML"),
    (b"x = 1\n" * (1 << 20), "larger than 4 MB"),
]


@pytest.mark.parametrize(("text", "said"), SETTINGS)
def test_a_hostile_settings_file_is_exit_2_in_one_line(text: Any, said: str, tmp_path: Path) -> None:
    path = tmp_path / "toolkit.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ToolkitError) as found:
        config_file.load_config(path)
    assert said in found.value.message and str(path) in found.value.message and found.value.exit_code == USAGE
    assert "\n" not in found.value.message and len(found.value.message) < 400


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.seed=0x" + "f" * 4000, "data.seed: is a number with too many digits"),
        ("data.seed=" + "1" * 5000, "data.seed: is a number with too many digits"),
        ("train.learning_rate=inf", "train.learning_rate: is infinite"),
        ("train.max_steps=" + "9" * 30, "train.max_steps: is a number with too many digits"),
        ("export.quantizations=" + DEEP, "export.quantizations: is nested more than 100 deep"),
        ("ollama.temperature=" + DEEP, "ollama.temperature: is nested more than 100 deep"),
        ("data.source=n\udce3o.csv", "data.source: n\\xe3o.csv holds bytes that are not UTF-8"),
        ("run.folder=\udcff", "run.folder: \\xff holds bytes"),
    ],
)
def test_a_hostile_override_is_exit_2_and_names_its_key(override: str, said: str) -> None:
    with pytest.raises(ToolkitError) as found:
        config_file.build({}, [override])
    assert said in found.value.message and found.value.exit_code == USAGE and len(found.value.message) < 400


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"version": 1, "run_id": "M\xff"}', "not UTF-8 text: byte 0xff"),
        (b'{"version": 1, "run_id": ' + DEEP.encode() + b"}", "`run_id` is nested"),
        (b'{"version": ' + b"1" * 5000 + b', "run_id": "x"}', "`version` is a number with too many digits"),
        (b'{"version": 1, "stages": {}}', "run_id: Field required"),
        (b'{"version": 1, "run_id": "x", "stages": {"train": {"seconds": Infinity}}}', "`stages.train.seconds`"),
        (b"[]", "damaged"),
    ],
)
def test_a_damaged_manifest_says_where(content: bytes, said: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path, "x")
    folder.manifest.write_bytes(content)
    with pytest.raises(ToolkitError) as found:
        read_manifest(folder)
    assert said in found.value.message and str(folder.manifest) in found.value.message


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b'{"instruction": "", "input": "\\ud800", "output": "x"}', "`input` is not text"),
        (b'{"instruction": "", "input": "x"}', "`output` is not text"),
        (b'{"instruction": "", "input": "x", "output": 3}', "`output` is not text"),
        (b"[1]", "not a JSON object"),
        (DEEP.encode(), "nested"),
        (b'{"instruction": "\xff"}', "not UTF-8"),
    ],
)
def test_a_damaged_record_names_its_line(line: bytes, said: str, tmp_path: Path) -> None:
    path = tmp_path / "train.jsonl"
    path.write_bytes(b'{"instruction": "", "input": "a", "output": "b"}\n' + line + b"\n")
    with pytest.raises(ToolkitError) as found:
        Records(path)
    assert "line 2" in found.value.message and said in found.value.message


def test_an_endless_file_is_not_read_to_its_end() -> None:
    with pytest.raises(ValueError, match="larger than 4 MB"):
        read_bounded(Path("/dev/zero"), 4 << 20)
