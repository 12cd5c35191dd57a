"""The README is what a newcomer reads in three minutes; tests/test_pages.py runs its commands."""

import re

from tests.support.pages import README, blocks_of
from tests.support.places import REPOSITORY
from tools.pictures import LARGEST, PICTURES

TEXT = README.read_text(encoding="utf-8")
PARTS = [
    "Why", "Install", "Quick start", "Your own questions and answers", "Llama-3.1-8B on a GPU", "Ask it",
    "What is checked", "Results", "More",
]  # fmt: skip


def test_the_readme_has_what_a_newcomer_needs() -> None:
    shown = "\n".join(block.code for block in blocks_of(README))
    for said in ("make quickstart", "ollama run", "import ollama", "toolkit init", "toolkit doctor"):
        assert said in shown
    assert "not a medical device" in TEXT[: TEXT.index("## Why")]


def test_it_is_short_and_has_its_parts_in_order() -> None:
    assert len(TEXT.splitlines()) <= 180
    assert re.findall(r"^## (.+)$", TEXT, re.MULTILINE) == PARTS


def test_each_reason_has_a_figure_and_says_where_it_comes_from() -> None:
    reasons = TEXT[TEXT.index("## Why") : TEXT.index("## Install")].split("\n- ")[1:]
    assert len(reasons) == 5
    for reason in reasons:
        assert re.search(r"\d", reason) and re.search(r"\]\(docs/[\w/-]+\.md\)", reason), reason


def test_its_figures_are_those_of_the_benchmarks() -> None:
    """Every row of the table of results, and the figures of the reasons."""
    pages = {path.stem: path.read_text("utf-8") for path in (REPOSITORY / "docs/benchmarks").glob("*.md")}
    for figure in (
        "11.573",
        "8.645",
        "144.8 MB",
        "0.0032",
        "97.19 %",
        "8.687",
        "105.5 MB",
        "0.0393",
        "89.33 %",
        "9.143",
    ):
        assert figure in TEXT and figure in pages["evaluation"]
    memory = (REPOSITORY / "docs/guide/gpu.md").read_text("utf-8")
    for plan in re.findall(r"^\| ([\w, ]+ GB(?: and more)?) \| .* \| ([\d.]+ GB) \|$", TEXT, re.MULTILINE):
        assert re.search(rf"^\| {plan[0]} \| .* \| {plan[1]} \|$", memory, re.MULTILINE), plan
    assert "9.9 times" in TEXT and "9.9 times" in pages["export"]
    assert "16,108" in TEXT and "16,108 | 0.991 | 56.6 GiB | 61 %" in pages["training"]
    assert "2,479" in pages["registration"] and "29 of 29" in pages["registration"]


def test_the_pictures_are_small_and_can_be_made_again() -> None:
    shown = set(re.findall(r"docs/img/([\w.]+)", TEXT))
    there = {path.name for path in (REPOSITORY / "docs/img").iterdir()}
    assert shown <= there <= set(PICTURES) and len(shown) >= 4
    for name in there:
        assert (REPOSITORY / "docs/img" / name).stat().st_size < LARGEST, name
