"""The pages under docs/: their generated parts, the site that is built of them, and how it looks."""

import ast
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click
import pytest

from tests.support import pages
from tests.support.browser import WIDTHS, chromium
from tests.support.places import REPOSITORY
from tests.support.web import serving_bytes
from tools import reference

if TYPE_CHECKING:
    from playwright.sync_api import Browser

DOCS = REPOSITORY / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
CONFIG = REPOSITORY / "mkdocs.yml"
VARIABLE = re.compile(
    r"(?:HF|OLLAMA|XDG|TOOLKIT|CUDA|SSL|CURL|REQUESTS|UNSLOTH|ACCELERATE|FSDP|PYTORCH|PYTHON)_?[A-Z]+(?:_[A-Z]+)*"
)
NOT_VARIABLES = {"UNSLOTH_IGNORED_TOKENIZER_NAMES", "HF", "SSL", "CUDA", "FSDP", "OLLAMA", "TOOLKIT", "PYTHON"}


def test_the_generated_parts_are_what_they_are_made_from() -> None:
    differing = [str(path) for path in PAGES if reference.written(text := path.read_text("utf-8")) != text]
    assert not differing, "`make docs` writes them"


def test_every_generated_part_is_in_one_page() -> None:
    found = [part["name"] for path in PAGES for part in reference.PART.finditer(path.read_text("utf-8"))]
    assert sorted(found) == sorted(reference.PARTS)


def test_a_part_that_changed_is_written_again() -> None:
    page = "before\n<!-- begin: tensor-types -->\nold\n<!-- end: tensor-types -->\nafter\n"
    now = reference.written(page)
    assert "`IQ4_NL`" in now and "old" not in now
    assert now.startswith("before\n") and now.endswith("after\n") and reference.written(now) == now


def test_a_cell_of_a_table_may_hold_a_bar_and_a_line_break() -> None:
    made = reference.table(["a", "b", "c"], [["x|y", "one\n  two", "`A|<B>` and `C`"]])
    assert made.endswith("| x&#124;y | one two | <code>A&#124;&lt;B&gt;</code> and `C` |")


def test_an_option_that_verbs_share_has_the_meaning_that_it_has_for_each_of_them() -> None:
    verbs = dict(reference._commands())
    rows = [line.strip("| ").split(" | ") for line in reference.shared_options().splitlines()[2:]]
    assert len(rows) == len(reference.SHARED)
    for option, meaning, where in rows:
        flag = option.rpartition("`")[0].rpartition("--")[2].split()[0]
        left_out = where.partition("all but ")[2].split(", ")
        for name in set(verbs) - {*left_out}:
            own = [one.help for one in verbs[name].params if isinstance(one, click.Option) and f"--{flag}" in one.opts]
            assert own and meaning.startswith(own[0] or "-"), (name, flag)


def test_the_site_lists_every_page_once() -> None:
    listed = re.findall(r"^ *- ([\w/-]+\.md)$", CONFIG.read_text("utf-8"), re.MULTILINE)
    assert sorted(listed) == [str(path.relative_to(DOCS)) for path in PAGES]


def test_every_module_has_a_role_in_the_tree() -> None:
    tree = (DOCS / "architecture.md").read_text("utf-8")
    for path in sorted((REPOSITORY / "toolkit").rglob("*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text("utf-8")))
        assert doc, path
        assert path == REPOSITORY / "toolkit/__init__.py" or " ".join(doc.split("\n\n")[0].split()) in tree, path


def test_every_variable_of_the_environment_is_named() -> None:
    named = (DOCS / "reference/environment.md").read_text("utf-8")
    for path in sorted((REPOSITORY / "toolkit").rglob("*.py")):
        text = path.read_text("utf-8")
        for node in ast.walk(ast.parse(text)) if VARIABLE.search(text) else ():
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and VARIABLE.fullmatch(node.value):
                assert node.value in NOT_VARIABLES or f"`{node.value}" in named, f"{path}: {node.value}"


def test_every_small_page_says_how_its_figures_are_made() -> None:
    for path in (DOCS / "benchmarks").glob("*.md"):
        made = any("benchmarks/" in one.code or "pytest" in one.code for one in pages.blocks_of(path))
        assert made or path.name == "index.md", path


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built as `make docs` builds it: a warning or a broken link ends it."""
    place = tmp_path_factory.mktemp("site")
    shutil.copytree(DOCS, place / "docs")
    shutil.copy(CONFIG, place)
    done = build(place)
    assert done.returncode == 0, done.stdout + done.stderr
    return place / "site"


def build(place: Path) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("zensical")
    return subprocess.run([program, "build", "--strict"], cwd=place, capture_output=True, text=True)


@pytest.mark.slow
def test_the_site_is_built_without_a_warning(site: Path) -> None:
    for path in PAGES:
        name = path.relative_to(DOCS).with_suffix("")
        built = site / (name.parent if name.name == "index" else name) / "index.html"
        assert built.is_file(), built


@pytest.mark.slow
def test_a_broken_link_ends_the_build(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("# A\n\n[b](b.md)\n")
    (tmp_path / "mkdocs.yml").write_text("site_name: a\n")
    assert build(tmp_path).returncode != 0


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    with chromium() as running:
        yield running


def files_of(site: Path) -> dict[str, bytes]:
    """Every file of the site by its address; a folder's is that of its index.html."""
    files = {f"/{path.relative_to(site)}": path.read_bytes() for path in site.rglob("*") if path.is_file()}
    return files | {name.removesuffix("index.html"): content for name, content in files.items()}


@pytest.mark.slow
@pytest.mark.parametrize("width", ["phone", "desk"])
def test_every_page_fits_its_screen_and_asks_no_other_server(browser: "Browser", site: Path, width: str) -> None:
    across, down = WIDTHS[width]
    with serving_bytes(files_of(site)) as address:
        page = browser.new_page(viewport={"width": across, "height": down})
        asked: list[str] = []
        wrong: list[str] = []
        page.on("request", lambda request: asked.append(request.url))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("response", lambda answer: wrong.append(answer.url) if answer.status >= 400 else None)
        for path in sorted(site.rglob("index.html")):
            page.goto(f"{address}/{path.relative_to(site).as_posix().removesuffix('index.html')}")
            assert page.locator("h1").count() == 1, path
            assert page.evaluate("document.documentElement.scrollWidth") <= across, path
        page.close()
    assert wrong == [] and {url for url in asked if not url.startswith(address)} == set()
