"""The README has what a newcomer needs; tests/test_pages.py runs its commands."""

import click

from tests.support.pages import README, blocks_of
from tests.support.places import REPOSITORY
from toolkit.cli import commands as verbs  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group

TEXT = README.read_text(encoding="utf-8")


def test_the_readme_has_what_a_newcomer_needs() -> None:
    shown = "\n".join(block.code for block in blocks_of(README))
    for said in ("make quickstart", "ollama run", "import ollama", "toolkit init", "toolkit doctor"):
        assert said in shown
    assert "@@" not in TEXT


def test_every_verb_is_listed() -> None:
    for verb in group.list_commands(click.Context(group)):
        assert f"| `{verb}` |" in TEXT


def test_the_architecture_names_every_module() -> None:
    tree = TEXT[TEXT.index("## Architecture") :]
    for path in sorted((REPOSITORY / "toolkit").iterdir()):
        if path.name.startswith("_") or path.name in ("templates", "py.typed"):
            continue
        assert path.name + ("/" if path.is_dir() else "") in tree, path.name
