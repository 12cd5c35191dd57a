"""A real headless Chromium without a network, for pages that are opened from a file."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tests.conftest import needed

if TYPE_CHECKING:
    from playwright.sync_api import Browser, BrowserContext, Page

WIDTHS = {"phone": (360, 740), "tablet": (820, 1180), "desk": (1400, 900)}
Theme = Literal["light", "dark"]
THEMES: tuple[Theme, ...] = ("light", "dark")


def find_chromium() -> str | None:
    """TOOLKIT_TEST_CHROMIUM, else a Chromium or Chrome on PATH (Debian: apt install chromium)."""
    names = ("chromium", "chromium-browser", "google-chrome")
    return os.environ.get("TOOLKIT_TEST_CHROMIUM") or next(filter(None, map(shutil.which, names)), None)


@contextmanager
def chromium() -> Iterator["Browser"]:
    """Run a Chromium; skips where there is none, which is a failure under CI."""
    from playwright.sync_api import sync_playwright

    found = find_chromium()
    needed(found, "Chromium (Debian: apt install chromium, elsewhere TOOLKIT_TEST_CHROMIUM)")
    with sync_playwright() as playwright:
        # In a container Chromium has neither its own sandbox nor a large /dev/shm.
        browser = playwright.chromium.launch(executable_path=found, args=["--no-sandbox", "--disable-dev-shm-usage"])
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Opened:
    """A page, what it complained of on its console, and what it asked of a network."""

    page: "Page"
    context: "BrowserContext"
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@contextmanager
def opened(browser: "Browser", path: Path, width: str = "desk", theme: Theme = "light") -> Iterator[Opened]:
    """Open a file in a fresh profile with the network off; `width` is one of `WIDTHS`."""
    across, down = WIDTHS[width]
    context = browser.new_context(viewport={"width": across, "height": down}, color_scheme=theme, offline=True)
    try:
        yield new_page(context, path)
    finally:
        context.close()


def new_page(context: "BrowserContext", path: Path) -> Opened:
    """Open a file in a further window of the same profile."""
    found = Opened(context.new_page(), context)
    found.page.on("console", lambda message: found.complaints.append(f"{message.type}: {message.text}"))
    found.page.on("pageerror", lambda error: found.complaints.append(str(error)))
    found.page.on("request", lambda request: found.requests.append(request.url))
    found.page.goto(path.resolve().as_uri())
    return found
