"""README and the pages under docs/: every command is run or marked, every setting, file, test and link is there.

The blocks run in a fresh copy of the repository as a newcomer would type them, with a real Ollama server: those of the
README first, then page by page, each in the order in which it stands.
"""

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from tests.support import pages
from tests.support.ollama_server import OllamaServer
from tests.support.outside import smollm
from tests.support.pages import PAGES, README, Block, Checkout
from tests.support.places import REPOSITORY
from toolkit.cli import commands as verbs  # noqa: F401  (it adds the verbs to the group)
from toolkit.cli.options import group
from toolkit.core.config import SECTIONS
from toolkit.core.config_file import build
from tools import reference

BLOCKS = [block for page in PAGES for block in pages.blocks_of(page)]
CALLS = [block for block in BLOCKS if block.toolkit_calls]
SETTINGS = [block for block in BLOCKS if block.language == "toml"]
RUNNING = [page for page in PAGES if any(block.run for block in BLOCKS if block.page == page)]
SETTING = re.compile(rf"`({'|'.join(SECTIONS)})\.([a-z_0-9]+)")
FILES = re.compile(r"`((?:tests|examples|benchmarks|docs|toolkit|data)/[\w/.-]*\w/?)`")
NAMED_TEST = re.compile(r"`(tests/[\w/]+\.py)`(?:: `(test_\w+)`)?")
LINK = re.compile(r"(?<!!)\[[^\]]+\]\(([^)\s]+)\)")
PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
ENDINGS = (
    "com",
    "csv",
    "jsonl",
    "py",
    "safetensors",
    "svg",
    "toml",
)  # of names of files and sites, which look like settings
MADE = ("data/personal.jsonl", "data/rejected.jsonl", "data/raw/")  # by a run, in its folder


def page_name(page: Path) -> str:
    return str(page.relative_to(REPOSITORY))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_block_names_its_language(page: Path) -> None:
    for block in pages.blocks_of(page):
        assert block.language or not re.search(r"^(?:toolkit|make|pip|ollama) ", block.code, re.MULTILINE), block.place


@pytest.mark.parametrize("block", CALLS, ids=lambda block: block.place)
def test_every_toolkit_command_parses(block: Block) -> None:
    for verb_name, *arguments in block.toolkit_calls:
        verb = group.get_command(click.Context(group), verb_name)
        assert verb is not None, verb_name
        verb.make_context(verb_name, arguments)


@pytest.mark.parametrize("block", SETTINGS, ids=lambda block: block.place)
def test_settings_that_are_shown_are_accepted(block: Block) -> None:
    build(tomllib.loads(block.code))


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_what_a_page_names_is_there(page: Path) -> None:
    text = reference.PART.sub("", pages.without_blocks(page))  # the generated parts come from the code itself
    for section, name in SETTING.findall(text):
        assert name in SECTIONS[section].model_fields or name in ENDINGS, f"{section}.{name}"
    for name in FILES.findall(text):
        assert name in MADE or (REPOSITORY / name).exists(), name
    for file, test in NAMED_TEST.findall(text):
        assert not test or f"def {test}(" in (REPOSITORY / file).read_text(encoding="utf-8"), f"{file}: {test}"


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_lead_somewhere(page: Path) -> None:
    text = pages.without_blocks(page)
    for link in (*LINK.findall(text), *PICTURE.findall(text)):
        if re.match(r"https?://|mailto:", link):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists() and target.is_relative_to(REPOSITORY), link
        assert not anchor or anchor in pages.anchors(target), link


@pytest.fixture(scope="module")
def copy(server: OllamaServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkout]:
    """A copy of the repository in which the quick start was done, with fewer steps: 40 take minutes."""
    smollm()
    with pages.checkout(tmp_path_factory.mktemp("newcomer") / "toolkit", server) as made:
        settings = made.folder / "examples" / "quickstart.toml"
        steps, fewer = settings.read_text(encoding="utf-8").split("max_steps = 40 "), "max_steps = 4  "
        assert len(steps) == 2
        settings.write_text(fewer.join(steps), encoding="utf-8")
        done = made.call(["make", "quickstart"])
        assert done.returncode == 0, done.stdout + done.stderr
        assert "registered in Ollama" in done.stdout + done.stderr
        yield made


@pytest.mark.slow
@pytest.mark.ollama
@pytest.mark.parametrize("page", RUNNING, ids=page_name)
def test_every_block_runs(copy: Checkout, page: Path) -> None:
    for block in pages.blocks_of(page):
        if not block.run:
            continue
        done = copy.run(block)
        assert done.returncode == 0, f"{block.place}\n{block.code}\n{done.stdout}\n{done.stderr}"
        assert "Traceback" not in done.stderr, block.place
        assert block.language == "sh" or done.stdout.strip(), f"{block.place} shows nothing"
    if page == README:
        again = copy.call(["toolkit", "run", "-c", "examples/quickstart.toml"])
        assert again.returncode == 0 and "all stages are fresh" in again.stdout
