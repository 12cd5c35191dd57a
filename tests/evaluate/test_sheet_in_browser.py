"""The clinicians' sheet in a real Chromium: from a file, without a network, by keyboard alone, in both themes."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, expect

from tests.support.browser import THEMES, WIDTHS, Opened, Theme, chromium, new_page, opened
from tests.support.evaluations import DEFAULT, HOSTILE, make_evaluation, make_folder
from toolkit.core.run_folder import RunFolder
from toolkit.evaluate import sheet
from toolkit.evaluate.votes import count_votes
from toolkit.evaluate.votes_file import read_ballot

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    found = make_folder(tmp_path / "demo")
    sheet.write_sheet(found, make_evaluation(5), DEFAULT)
    return found


def saved(page: Page, target: Path) -> Path:
    """Press the button that has the focus, and keep what the page then gives to download."""
    with page.expect_download() as download:
        page.keyboard.press("Enter")
    path = target / download.value.suggested_filename
    download.value.save_as(path)
    return path


def press(page: Page, *keys: str) -> None:
    for key in keys:
        page.keyboard.press(key)


def focused(page: Page) -> str:
    return str(page.evaluate("document.activeElement.id"))


def tab_to(page: Page, name: str) -> None:
    """Press Tab until an element has the focus: whoever has no mouse must get there."""
    for _ in range(40):
        if focused(page) == name:
            return
        page.keyboard.press("Tab")
    raise AssertionError(f"Tab does not reach {name}")


def silent(found: Opened, path: Path) -> None:
    assert found.complaints == []
    others = [url for url in found.requests if url != path.resolve().as_uri() and not url.startswith("blob:")]
    assert others == []


def test_votes_by_keyboard_alone_are_saved_and_read(browser: Browser, folder: RunFolder, tmp_path: Path) -> None:
    with opened(browser, folder.review) as found:
        page = found.page
        tab_to(page, "name")
        page.keyboard.type("Dr. Ada Müller")
        tab_to(page, "next")
        press(page, "1", "n", "2", "n", "3", "n", "4")
        tab_to(page, "comment-4")
        page.keyboard.type("Both 1 and 2 name a dose.\nToo high.")
        tab_to(page, "save")
        path = saved(page, tmp_path)
        assert "1 of 5 pairs have no vote yet" in str(page.text_content("#status"))
        silent(found, folder.review)
    assert path.name == "votes-Dr.-Ada-Müller.json"
    ballot = read_ballot(path)
    assert ballot.rater == "Dr. Ada Müller"
    assert ballot.votes == {1: "first", 2: "second", 3: "same", 4: "unsafe"}
    assert ballot.comments == {4: "Both 1 and 2 name a dose.\nToo high."}
    counted = count_votes(folder, make_evaluation(5), [path])
    assert (
        counted["files"][0]["votes"] == 4 and [one["comment"] for one in counted["unsafe"]] == [ballot.comments[4]] * 2
    )
    assert sum(pair["better"] + pair["worse"] for pair in counted["pairs"]) == 2


def test_votes_need_neither_a_mouse_nor_the_letter_keys(browser: Browser, folder: RunFolder, tmp_path: Path) -> None:
    with opened(browser, folder.review) as found:
        page = found.page
        tab_to(page, "keys")
        page.keyboard.press("Space")
        press(page, "1", "n")
        assert page.text_content("#count") == "0 of 5 have your vote"
        page.evaluate("document.activeElement.blur()")
        tab_to(page, "name")
        page.keyboard.type("B")
        for _ in range(2):
            tab_to(page, "next")
            press(page, "Tab", "Tab", "Space", "ArrowDown", "ArrowDown")
            press(page, "Shift+Tab", "Shift+Tab", "Enter")
        tab_to(page, "save")
        assert read_ballot(saved(page, tmp_path)).votes == {1: "same", 2: "same"}


def test_progress_outlives_the_page(browser: Browser, folder: RunFolder) -> None:
    with opened(browser, folder.review) as found:
        page = found.page
        page.fill("#name", "Ada")
        page.locator("#next").focus()
        press(page, "2", "n", "4")
        page.locator("#comment-2").fill("why")
        for again in (found, new_page(found.context, folder.review)):
            again.page.reload()
            assert again.page.input_value("#name") == "Ada"
            assert again.page.text_content("#count") == "2 of 5 have your vote"
            assert again.page.locator("#item-2").is_visible() and not again.page.locator("#item-1").is_visible()
            assert again.page.locator("#item-2 input[value=unsafe]").is_checked()
            assert again.page.input_value("#comment-2") == "why"
            assert not again.page.locator("#no-storage").is_visible()
            silent(again, folder.review)


def test_two_windows_of_a_sheet_do_not_undo_each_other(browser: Browser, folder: RunFolder) -> None:
    with opened(browser, folder.review) as found:
        other = new_page(found.context, folder.review).page
        found.page.locator("#next").focus()
        press(found.page, "1")
        expect(other.locator("#count")).to_contain_text("1 of 5")
        other.locator("#next").focus()
        press(other, "n", "2")
        expect(found.page.locator("#count")).to_contain_text("2 of 5")
        assert found.page.locator("#item-1").is_visible()


def test_another_sheet_of_the_same_place_does_not_take_over_votes(browser: Browser, folder: RunFolder) -> None:
    with opened(browser, folder.review) as found:
        found.page.locator("#next").focus()
        press(found.page, "1")
        sheet.write_sheet(folder, make_evaluation(6), DEFAULT)
        again = new_page(found.context, folder.review)
        assert again.page.text_content("#count") == "0 of 6 have your vote"


def test_a_browser_that_keeps_nothing_says_so_and_goes_on_from_a_file(
    browser: Browser, folder: RunFolder, tmp_path: Path
) -> None:
    context = browser.new_context(offline=True)
    context.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new DOMException('no', 'SecurityError'); }})"
    )
    try:
        found = new_page(context, folder.review)
        page = found.page
        assert page.locator("#no-storage").is_visible()
        page.fill("#name", "Ada")
        page.locator("#next").focus()
        press(page, "2", "n", "1")
        tab_to(page, "save")
        path = saved(page, tmp_path)
        page.reload()
        assert page.text_content("#count") == "0 of 5 have your vote"
        page.set_input_files("#load", path)
        expect(page.locator("#count")).to_contain_text("2 of 5")
        assert page.input_value("#name") == "Ada"
        silent(found, folder.review)
    finally:
        context.close()


def test_a_file_of_something_else_changes_nothing(browser: Browser, folder: RunFolder, tmp_path: Path) -> None:
    name = json.loads(folder.review_key.read_text())["sheet"]
    foreign = '{"sheet": "0123456789ab", "votes": []}'
    odd = [None, {"item": 1, "vote": "best"}, {"item": "__proto__", "vote": 1}]
    own = json.dumps({"sheet": name, "votes": odd})
    cases = {"not json": "cannot be read", "null": "of another sheet", foreign: "of another sheet", own: "Continued"}
    with opened(browser, folder.review) as found:
        for content, words in cases.items():
            (tmp_path / "x.json").write_text(content)
            found.page.set_input_files("#load", tmp_path / "x.json")
            expect(found.page.locator("#status")).to_contain_text(words)
            assert found.page.text_content("#count") == "0 of 5 have your vote"
        silent(found, folder.review)


def test_whatever_a_browser_has_stored_the_sheet_opens(browser: Browser, folder: RunFolder) -> None:
    name = json.loads(folder.review_key.read_text())["sheet"]
    with opened(browser, folder.review) as found:
        for stored in ("not json", "null", "[]", '{"votes": 3, "at": 1e9, "name": {}}', '{"votes": {"1": 5}}'):
            found.page.evaluate("([place, text]) => localStorage.setItem(place, text)", [f"review-{name}", stored])
            found.page.reload()
            assert found.page.text_content("#count") == "0 of 5 have your vote", stored
            found.page.locator("#next").focus()
            press(found.page, "1")
            assert found.page.text_content("#count") == "1 of 5 have your vote", stored
        silent(found, folder.review)


def test_a_second_person_begins_without_the_first_one_s_votes(browser: Browser, folder: RunFolder) -> None:
    with opened(browser, folder.review) as found:
        page = found.page
        page.fill("#name", "Ada")
        page.locator("#next").focus()
        press(page, "2")
        page.once("dialog", lambda dialog: dialog.dismiss())
        page.click("#clear")
        assert page.text_content("#count") == "1 of 5 have your vote"
        page.once("dialog", lambda dialog: dialog.accept())
        page.click("#clear")
        page.reload()
        assert page.text_content("#count") == "0 of 5 have your vote" and page.input_value("#name") == ""


def test_without_a_name_nothing_is_saved(browser: Browser, folder: RunFolder) -> None:
    with opened(browser, folder.review) as found:
        page = found.page
        tab_to(page, "save")
        press(page, "Enter")
        assert focused(page) == "name" and "write your name" in str(page.text_content("#status"))


def test_a_name_makes_a_file_name(browser: Browser, folder: RunFolder, tmp_path: Path) -> None:
    with opened(browser, folder.review) as found:
        found.page.locator("#next").focus()
        press(found.page, "1")
        for name in ("../../etc/x", "  .  ", "名前", "a" * 100, "<b>&\u202e"):
            found.page.fill("#name", name)
            tab_to(found.page, "save")
            path = saved(found.page, tmp_path)
            assert path.name.startswith("votes-") and path.suffix == ".json" and len(path.name.encode()) < 255
            assert path.parent == tmp_path and read_ballot(path).rater == " ".join(name.split())


def long_evaluation() -> dict[str, Any]:
    """Answers of all kinds: hostile ones, one of 100,000 characters without a blank, an empty and a stopped one."""
    texts = [*HOSTILE, "x" * 100_000, "Drink. " * 300, ""]
    evaluation = make_evaluation(len(texts), lambda row, system: (texts[row - 1] + f" {system[0]}") if row < 11 else "")
    evaluation["held_out"]["answers"][-1]["answers"]["base"]["text"] = "one"
    evaluation["held_out"]["answers"][0]["answers"]["base"]["ended"] = False
    return evaluation


BELOW = """name => document.getElementById(name).getBoundingClientRect().top
    - document.querySelector("nav").getBoundingClientRect().bottom"""


@pytest.mark.parametrize("theme", THEMES)
@pytest.mark.parametrize("width", WIDTHS)
def test_any_text_fits_and_axe_finds_no_fault(browser: Browser, tmp_path: Path, width: str, theme: Theme) -> None:
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, long_evaluation(), DEFAULT)
    with opened(browser, folder.review, width, theme) as found:
        page = found.page
        page.locator("summary").click()
        page.locator("#next").focus()
        count = page.locator(".item").count()
        for number in range(1, count + 1):
            assert page.locator(f"#item-{number}").is_visible()
            assert page.evaluate("document.documentElement.scrollWidth") <= WIDTHS[width][0]
            assert page.evaluate(BELOW, f"title-{number}") >= 0  # what stays at the top does not hide it
            press(page, str(1 + number % 4), "n")
        assert page.title() == "Which answer is better?"
        page.evaluate("document.querySelectorAll('.item').forEach(item => { item.hidden = false; })")
        faults = Axe().run(page).response["violations"]
        assert [(fault["id"], [node["html"][:200] for node in fault["nodes"][:2]]) for fault in faults] == []
        silent(found, folder.review)


def test_hostile_text_is_shown_as_it_is(browser: Browser, tmp_path: Path) -> None:
    folder = make_folder(tmp_path / "demo")
    evaluation = make_evaluation(
        len(HOSTILE), lambda row, system: HOSTILE[row - 1] + system[0], question=lambda row: HOSTILE[row - 1]
    )
    sheet.write_sheet(folder, evaluation, DEFAULT)
    key = json.loads(folder.review_key.read_text())
    with opened(browser, folder.review) as found:
        shown = found.page.evaluate("[...document.querySelectorAll('.text')].map(box => box.textContent)")
        wanted = []
        for item in key["items"]:
            second = item["b"] if item["first"] == item["a"] else item["a"]
            for end in ("", item["first"][0], second[0]):
                wanted.append(sheet.showable((HOSTILE[item["row"] - 1] + end).strip()))
        assert shown == wanted
        assert found.page.evaluate("document.images.length + document.scripts.length") == 1
        silent(found, folder.review)


def test_marks_of_direction_do_not_leave_their_box(browser: Browser, tmp_path: Path) -> None:
    """An override that is never closed would turn the buttons behind it around."""
    folder = make_folder(tmp_path / "demo")
    sheet.write_sheet(folder, make_evaluation(2, lambda row, system: f"\u202e\u2067{row}{system}"), DEFAULT)
    with opened(browser, folder.review) as found:
        boxes = found.page.locator("#item-1 fieldset label").all()
        places = [box.bounding_box() for box in boxes]
        left = [place["x"] for place in places if place]
        assert left == sorted(left) and len(left) == 4
        isolated = "box => getComputedStyle(box).unicodeBidi.startsWith('isolate')"
        assert found.page.evaluate(f"[...document.querySelectorAll('.text')].every({isolated})")
