"""Prefect's UI as people see it: its pages in a real Chromium, in either version, after the login that it asks for."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, Self

from playwright.sync_api import Locator, Page
from playwright.sync_api import TimeoutError as TooLate

from deployments.prefect_access import read_secret
from tests.browser import page
from tests.system import System

Version = Literal["v1", "v2"]
Rows = dict[str, str]
"""Names of runs, and the names of the states beside them."""

STEP_MS = 300
FEW_PAGES = 4
# A row is one element in each version, and so is the state in it; what is folded away is not seen.
READ_ROWS = """
kind => [...document.querySelectorAll(`a[href*="/runs/${kind}-run/"]`)].filter(link => link.checkVisibility())
  .map(link => [link, link.closest(".state-list-item, [data-slot=card]")]).filter(([_, row]) => row)
  .map(([link, row]) => [link.innerText.trim(), row.querySelector(".state-badge, [class*=bg-state-]")])
  .map(([name, state]) => [name, state && state.checkVisibility() ? state.innerText.trim() : ""])
"""
STATE_TABS = ".flow-run-state-type-tabs .p-tab, [role=tab]"
NEXT_PAGE = ".p-pager__context + button, [aria-label='Go to next page']"


class PrefectUi:
    """One version of the UI in a browser. While it is open, nothing else in this thread may run an event loop."""

    def __init__(self, page: Page, address: str, version: Version) -> None:
        self.page = page
        self._address = address
        self._base = "/v2" if version == "v2" else ""

    def login(self, secret: str) -> None:
        """Give the secret to the form that comes first."""
        self.page.goto(self._address)
        self.page.wait_for_url(f"**{self._base}/login**")
        self.page.locator("input").first.fill(secret)
        self.page.keyboard.press("Enter")
        self.page.wait_for_url(f"**{self._base}/dashboard**")

    def open(self, path: str) -> Self:
        """Open a page; its path is the same in both versions."""
        return self.open_link(f"{self._base}{path}")

    def open_link(self, path: str) -> Self:
        """Open a page by its whole path, as a bookmark has it."""
        self.page.goto(f"{self._address}{path}")
        return self

    def rows(self, kind: Literal["flow", "task"] = "flow") -> Rows:
        """The runs that are in sight, as soon as the page has come to rest."""
        seen: Rows = {}
        for _ in range(20):
            self.page.wait_for_timeout(STEP_MS)
            before, seen = seen, dict(self.page.evaluate(READ_ROWS, kind))
            if seen and seen == before:
                break
        return seen

    def listed(self) -> Rows:
        """The flow runs of a list, on its first pages."""
        seen = self.rows()
        for _ in range(FEW_PAGES - 1):
            following = self.page.locator(NEXT_PAGE).first
            if following.count() == 0 or following.is_disabled():
                break
            following.click()
            seen |= self.rows()
        return seen

    def on_dashboard(self, flow: str) -> Rows:
        """A flow's runs on the dashboard: under each tab of its states, in what is unfolded there."""
        seen: Rows = {}
        tabs = self.page.locator(STATE_TABS)
        for index in range(5):
            # Version 1 keeps the page's number from tab to tab: a tab with fewer pages would be empty.
            self.open_link("/")
            tabs.nth(index).click()
            fold = self.page.get_by_role("button", name=re.compile(f"^{flow}"))
            if _comes(fold):
                fold.click()
                seen |= self.listed()
        return seen

    def run_again(self, deployment_id: str, session_id: str) -> None:
        """Fill in the form of a custom run, and send it."""
        self.open(f"/deployments/deployment/{deployment_id}/run")
        self.page.locator("textarea").first.fill(session_id)
        self.page.get_by_role("button", name="Submit").click()
        self.page.wait_for_url(re.compile(f"/deployments/deployment/{deployment_id}([?]|$)"))

    def task_runs(self, flow_run_id: str) -> Rows:
        """The task runs on a flow run's page."""
        self.open(f"/runs/flow-run/{flow_run_id}")
        self.page.get_by_text("Task Runs", exact=True).first.click()
        return self.rows("task")


def _comes(element: Locator) -> bool:
    try:
        element.wait_for(timeout=2000)
    except TooLate:
        return False
    return True


@contextmanager
def prefect_ui(system: System, version: Version) -> Iterator[PrefectUi]:
    """The UI of a running system, with somebody logged in."""
    with page(prefect_ui_version=version) as empty:
        ui = PrefectUi(empty, system.addresses.prefect_ui, version)
        ui.login(read_secret(system.settings))
        yield ui
