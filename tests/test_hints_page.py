"""The page of troubleshooting holds every error of the code with its hint, and what the hints name is there."""

import ast
import re
from pathlib import Path

import click
import pytest

from tests.support.places import REPOSITORY
from toolkit.cli import commands as verbs  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from tools import hints

PAGE = hints.PAGE.read_text(encoding="utf-8")
EVERY = [one for found in hints.groups().values() for one in found]


def test_the_page_is_what_the_code_says() -> None:
    assert hints.written(PAGE) == PAGE, "the errors changed: `python -m tools.hints` writes the page"


def test_every_hint_that_stands_in_the_code_is_found() -> None:
    """Counted in another way: each text after `hint=`, whatever stands around it."""
    seen = " ".join(one.hint for one in EVERY)
    texts = []
    for path in (REPOSITORY / "toolkit").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg == "hint" and isinstance(node.value, ast.Constant):
                texts += [" ".join(str(node.value.value).split())]
    texts = [text for text in texts if " " in text]
    assert len(texts) > 200
    assert [text for text in texts if text not in seen] == []


def test_a_verb_that_a_hint_names_is_one() -> None:
    known = {*group.list_commands(click.Context(group)), hints.VALUE, "FOLDER"}
    named = {word for one in EVERY for word in re.findall(r"`toolkit ([\w…-]+)", one.hint)}
    assert len(named) > 8 and named <= known, named - known


SOURCE = """
AGAIN = "copy it again"

def refuse(path, many):
    message = f"`{path}` is broken"
    if many:
        raise ToolkitError(message, hint=AGAIN, exit_code=USAGE)
    what, hint = ("one of them", "take two") if path else ("none of them", "take one")
    if many > 2:
        hint = "take three"
        raise ToolkitError("too many", hint=hint)
    if many:
        raise ToolkitError(what, hint=hint)
    raise ToolkitError(
        f"{path}, {many} and more: " + ("late" if many else "early"), hint=f"wait for {many} s" if many else "go on"
    )
"""


def test_texts_are_found_wherever_they_stand(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(SOURCE)
    assert hints.hints_of(path) == [
        hints.Hint("`…` is broken", "copy it again", 2),
        hints.Hint("none of them", "take one", 1),
        hints.Hint("none of them", "take two", 1),
        hints.Hint("one of them", "take one", 1),
        hints.Hint("one of them", "take two", 1),
        hints.Hint("too many", "take three", 1),
        hints.Hint("… and more: early", "go on", 1),
        hints.Hint("… and more: early", "wait for … s", 1),
        hints.Hint("… and more: late", "go on", 1),
        hints.Hint("… and more: late", "wait for … s", 1),
    ]


def test_an_error_without_a_hint_and_one_of_values_alone_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "some.py"
    path.write_text(
        'ToolkitError("it failed")\nToolkitError("it failed", hint=found.fix)\nToolkitError("a", hint=f"{b}")\n'
    )
    assert hints.hints_of(path) == []


@pytest.mark.parametrize(
    ("text", "cell"), [("a | b", "a \\| b"), ("`[x] | *`", "`[x] \\| *`"), ("[[ ]] or <a>", "\\[\\[ ]] or \\<a>")]
)
def test_a_cell_shows_the_text_as_it_is(text: str, cell: str) -> None:
    assert hints._cell(text) == cell
