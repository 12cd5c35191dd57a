"""A damaged tokenizer.json ends in one error, also where the tokenizers library panics or aborts over it."""

import copy
import json
import os
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import models
from tests.support.damage import thorough
from tests.support.places import REPOSITORY
from toolkit.core.errors import ToolkitError
from toolkit.core.native import guarded
from toolkit.prompt.tokenizer import load_tokenizer

Layout = dict[str, Any]

# Loads every tokenizer.json that stdin names, as the stages do, and says how each ended.
CHILD = """
import sys
from pathlib import Path
from toolkit.core.errors import ToolkitError
from toolkit.prompt.tokenizer import load_tokenizer
for line in sys.stdin:
    try:
        tokenizer = load_tokenizer(Path(line.rstrip()))
        ids, _ = tokenizer.record_ids("What helps? \\u53d1 38", "rest\\U0001f600")
        tokenizer.shorten("a", "b c d e f g", 5)
        tokenizer.encode_batch(["x y", "\\u00e9"])
        tokenizer.decode(ids)
        print("read", flush=True)
    except ToolkitError as problem:
        print("refused" if problem.hint and "\\n" not in problem.message else "unclear", flush=True)
"""


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("whole")
    models.save_tokenizer(folder)
    layout: Layout = json.loads((folder / "tokenizer.json").read_text())
    return layout


def endings(layouts: list[Layout], place: Path) -> list[str]:
    """Load each layout in a child process, and say how it ended: read, refused, or how the process died."""
    for number, layout in enumerate(layouts):
        folder = place / str(number)
        folder.mkdir()
        (folder / "tokenizer.json").write_text(json.dumps(layout))
        (folder / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    done = subprocess.run(
        [sys.executable, "-c", CHILD],
        input="".join(f"{place / str(number)}\n" for number in range(len(layouts))),
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
    )
    assert not done.stderr, done.stderr[-2000:]
    ended = done.stdout.split()
    return ended if len(ended) == len(layouts) else [*ended, f"died with {done.returncode}"]


def template(*pieces: dict[str, Any]) -> Layout:
    return {
        "type": "TemplateProcessing",
        "single": [*pieces, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 0}}],
        "special_tokens": {},
    }


NOWHERE = {"SpecialToken": {"id": "nowhere", "type_id": 0}}
DAMAGES: dict[str, Callable[[Layout], Any]] = {
    # Inside a character this one aborts the process, elsewhere it is a panic.
    "subword prefix, one byte": lambda all: all["model"].update(continuing_subword_prefix="/"),
    "subword prefix, long": lambda all: all["model"].update(continuing_subword_prefix="##"),
    "subword prefix, two bytes": lambda all: all["model"].update(continuing_subword_prefix="é"),
    "subword prefix, no type": lambda all: all["model"].update(continuing_subword_prefix="a", type=None),
    "unknown token in the template": lambda all: all.update(post_processor=template(NOWHERE)),
    "charsmap": lambda all: all.update(normalizer={"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
    "pieces of length 0": lambda all: all.update(pre_tokenizer={"type": "FixedLength", "length": 0}),
    "decoder cuts too much": lambda all: all.update(decoder={"type": "Strip", "content": " ", "start": 9, "stop": 9}),
    "unknown words": lambda all: all.update(model={"type": "WordLevel", "vocab": {"a": 0}, "unk_token": "b"}),
    "unigram without unk": lambda all: all.update(model={"type": "Unigram", "unk_id": None, "vocab": [["a", 0.0]]}),
    "unigram of nothing": lambda all: all.update(model={"type": "Unigram", "unk_id": 7, "vocab": [["a", 0.0]]}),
    "added tokens of another kind": lambda all: all.update(added_tokens=[1]),
    "a nested text": lambda all: all.update(normalizer=[[[]]]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_by_name(
    whole: Layout, tmp_path: Path, damage: str, capfd: pytest.CaptureFixture[str]
) -> None:
    layout = copy.deepcopy(whole)
    DAMAGES[damage](layout)
    (tmp_path / "tokenizer.json").write_text(json.dumps(layout))
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|end_of_text|>"}')
    try:
        load_tokenizer(tmp_path)
    except ToolkitError as problem:
        assert str(tmp_path / "tokenizer.json") in problem.message and problem.hint
        assert "\n" not in problem.message and len(problem.message) < 600
    else:
        assert damage == "decoder cuts too much"  # some versions of the library cut what is there
    assert not capfd.readouterr().err  # the library's own account of its panic


@pytest.mark.slow
def test_no_damage_kills_the_process(whole: Layout, tmp_path: Path) -> None:
    layouts = [copy.deepcopy(whole) for _ in DAMAGES]
    for layout, damage in zip(layouts, DAMAGES.values(), strict=True):
        damage(layout)
    assert set(endings(layouts, tmp_path)) <= {"read", "refused"}


@pytest.mark.slow
@thorough(60, 1500)
def test_any_mutation_is_read_or_refused(whole: Layout, tmp_path: Path, examples: int) -> None:
    luck = random.Random(36)
    ended = endings([mutated(whole, luck) for _ in range(examples)], tmp_path)
    assert set(ended) <= {"read", "refused"}
    assert "refused" in ended


VALUES: list[Any] = [
    None, True, -1, 0, 1, 2**32, 1e308, "", "x", "▁", "##", [], {}, [["a", "b"]], {"type": "ByteLevel"}, {"Regex": "("},
    {"Regex": ""}, {"String": ""}, "Sequence", "WordPiece", "BPE", "Unigram", "Precompiled", "Split", "Metaspace",
    "TemplateProcessing", "isolated", "é" * 300,
]  # fmt: skip


def mutated(whole: Layout, luck: random.Random) -> Layout:
    """Return a tokenizer.json with one to three values replaced or removed, or one of the known damages."""
    layout = copy.deepcopy(whole)
    for _ in range(luck.choice([1, 1, 2, 3])):
        if luck.random() < 0.2:
            luck.choice([*DAMAGES.values()])(layout) if isinstance(layout.get("model"), dict) else None
            continue
        inside: Any = layout
        while True:
            key: Any = luck.choice([*inside]) if isinstance(inside, dict) else luck.randrange(len(inside))
            inner = inside[key]
            if not isinstance(inner, dict | list) or not inner or luck.random() < 0.2:
                break
            inside = inner
        if luck.random() < 0.2:
            del inside[key]
        else:
            inside[key] = copy.deepcopy(luck.choice(VALUES))
        if not layout:
            break
    return layout


def test_an_interrupt_is_no_damage() -> None:
    with pytest.raises(KeyboardInterrupt), guarded(lambda reason: ToolkitError(reason), silent=True):
        raise KeyboardInterrupt


def test_what_a_library_says_is_shown_where_it_succeeds(capfd: pytest.CaptureFixture[str]) -> None:
    with guarded(lambda reason: ToolkitError(reason), silent=True):
        os.write(2, b"a remark\n")
    assert capfd.readouterr().err == "a remark\n"
