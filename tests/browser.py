"""A real browser for tests: Chromium as the system has it, driven by Playwright."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

from playwright.sync_api import Page, sync_playwright

from tests.services import missing

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = (
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@contextmanager
def page(scheme: Literal["light", "dark"] = "light", **cookies: str) -> Iterator[Page]:
    """An empty page of a new profile. `cookies` are those of 127.0.0.1."""
    found = [path for name in NAMES if (path := shutil.which(name)) is not None]
    if not found:
        missing("There is no Chromium: install Debian's `chromium`")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found[0], args=[*QUIET])
        context = browser.new_context(viewport={"width": 1280, "height": 800}, color_scheme=scheme)
        context.add_cookies(
            [{"name": name, "value": value, "url": "http://127.0.0.1"} for name, value in cookies.items()]
        )
        yield context.new_page()
        browser.close()
