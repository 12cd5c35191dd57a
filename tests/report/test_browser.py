"""The page in a real Chromium, from a file and without a network: its looks, its access, and on paper."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser

from tests.support import reported
from tests.support.browser import THEMES, WIDTHS, Theme, chromium, opened
from toolkit.report import gather_run, write_comparison, write_pages

pytestmark = pytest.mark.slow
PAGES = ["quickstart", "hostile", "begun", "compare"]
FRESH = dict.fromkeys(reported.STAGES, "")
RULES = {"runOnly": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of a whole run, of one that has only begun, one with hostile texts, and a comparison."""
    place = tmp_path_factory.mktemp("pages")
    whole, other = reported.made(place), reported.made(place, "other", seed=1, train={"learning_rate": 1e-4})
    hostile = reported.made(place, "hostile")
    del hostile.evaluation["held_out"]["answers"][6:]
    long = "A" * 3000 + "<b>&" + "\u202eשלום " * 40
    for one in hostile.evaluation["held_out"]["answers"]:
        one.update(question=long[2900:], reference=long)
        one["answers"]["base"]["text"] = long
    hostile.report["base"]["label"] = long
    hostile.report["quantizations"]["Q2_K"].update(passed=False, problems=[long], mean_kl=None, kl_counts=None)
    hostile.report["warnings"] = [long]
    hostile.write()
    begun = reported.made(place, "begun")
    for path in (begun.folder.report, begun.folder.evaluation, begun.folder.train_log):
        path.unlink()
    for run in (whole, other, hostile, begun):
        write_pages(run.config, run.folder, FRESH)
    one, two = (gather_run(run.config, run.folder, FRESH) for run in (whole, other))
    write_comparison(one, two, place / "compare.html")
    found = {run.folder.name: run.folder.page for run in (whole, hostile, begun)}
    return {**found, "compare": place / "compare.html"}


@pytest.mark.parametrize("name", PAGES)
@pytest.mark.parametrize("width", [*WIDTHS])
def test_it_opens_without_a_network_and_nothing_is_wider_than_the_screen(
    browser: Browser, pages: dict[str, Path], name: str, width: str
) -> None:
    with opened(browser, pages[name], width) as found:
        assert found.complaints == [] and found.requests == [pages[name].resolve().as_uri()]
        assert found.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
        found.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        assert found.page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]


@pytest.mark.parametrize(
    ("name", "theme", "width"),
    [
        ("quickstart", "light", "phone"),
        ("quickstart", "dark", "desk"),
        ("hostile", "dark", "phone"),
        ("begun", "light", "tablet"),
        ("compare", "dark", "tablet"),
        ("compare", "light", "phone"),
    ],
)
def test_axe_finds_nothing(browser: Browser, pages: dict[str, Path], name: str, theme: Theme, width: str) -> None:
    with opened(browser, pages[name], width, theme) as found:
        found.page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
        violations = Axe().run(found.page, options=RULES).response["violations"]
        assert [(one["id"], one["nodes"][0]["html"][:200]) for one in violations] == []


@pytest.mark.parametrize("theme", THEMES)
def test_the_theme_is_the_readers(browser: Browser, pages: dict[str, Path], theme: Theme) -> None:
    with opened(browser, pages["quickstart"], theme=theme) as found:
        paper = found.page.evaluate("getComputedStyle(document.body).backgroundColor")
        bar = found.page.evaluate("getComputedStyle(document.querySelector('rect.one')).fill")
        brightness = sum(map(int, re.findall(r"\d+", paper))) / 3
        assert (brightness > 200) == (theme == "light")
        assert bar == ("rgb(11, 107, 184)" if theme == "light" else "rgb(98, 174, 240)")


def test_no_text_of_a_chart_is_cut_off_or_on_another(browser: Browser, pages: dict[str, Path]) -> None:
    script = """() => [...document.querySelectorAll('svg.chart')].flatMap(svg => {
        const whole = svg.getBoundingClientRect();
        const texts = [...svg.querySelectorAll('text')].map(one => [one.textContent, one.getBoundingClientRect()]);
        const cut = texts.filter(([, box]) => box.left < whole.left - 1 || box.right > whole.right + 8
            || box.top < whole.top - 1 || box.bottom > whole.bottom + 1).map(([text]) => text);
        const over = texts.flatMap(([text, a], i) => texts.slice(i + 1).filter(([, b]) =>
            a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 3 && b.top < a.bottom - 3)
            .map(([other]) => text + ' / ' + other));
        return [...cut, ...over];
    })"""
    for name in ("quickstart", "compare"):
        for width in WIDTHS:
            with opened(browser, pages[name], width) as found:
                assert found.page.evaluate(script) == []


def test_it_prints_to_pdf_with_every_answer(browser: Browser, pages: dict[str, Path], tmp_path: Path) -> None:
    with opened(browser, pages["quickstart"]) as found:
        found.page.emulate_media(media="print")
        last = found.page.locator("details").last
        assert last.get_attribute("open") is None
        assert found.page.evaluate(
            "[...document.querySelectorAll('details p')].every(one => one.getBoundingClientRect().height > 0)"
        )
        found.page.set_viewport_size({"width": 720, "height": 1020})  # A4 between its margins
        places = found.page.eval_on_selector_all(
            ".answers:first-of-type > .answer", "all => all.slice(0, 3).map(one => one.getBoundingClientRect().top)"
        )
        assert len(places) == 3 and len(set(places)) == 1  # side by side: else 50 questions take 100 sheets of paper
        found.page.pdf(path=tmp_path / "report.pdf", format="A4")
    written = (tmp_path / "report.pdf").read_bytes()
    counts = [int(count) for count in re.findall(rb"/Count (\d+)", written)]
    assert written.startswith(b"%PDF-") and max(counts) > 5
