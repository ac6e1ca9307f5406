"""The page of `rowmill watch` in headless Chromium: live, by keyboard, at 390 pixels, without an error or a request."""

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.behaviour.dashboard.conftest import OpenWatch, Watch
from tests.conftest import Workspace
from tests.support.forked import ended, run

pytestmark = pytest.mark.browser


@pytest.fixture
def chromium() -> Iterator[Any]:
    """A headless Chromium."""
    playwright = pytest.importorskip("playwright.sync_api")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed")
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@pytest.fixture
def job(workspace: Workspace) -> Path:
    """A job that never ran."""
    workspace.csv(40)
    return workspace.job(sink="{parquet: out, columns: [text]}")


def opened(chromium: Any, page: Watch, path: str, problems: list[str], width: int = 1280) -> Any:
    """A tab with a page; what goes wrong in it is added to `problems`, also a request to any other address."""
    tab = chromium.new_page(viewport={"width": width, "height": 900})
    tab.on("console", lambda message: problems.append(message.text))
    tab.on("pageerror", lambda error: problems.append(str(error)))
    tab.on("request", lambda request: own(page, request.url) or problems.append(request.url))
    tab.goto(f"http://127.0.0.1:{page.port}{path}{'&' if '?' in path else '?'}token={page.access.token}")
    return tab


def own(page: Watch, url: str) -> bool:
    return url.startswith(f"http://127.0.0.1:{page.port}/")


def test_pages_change_by_themselves_and_send_nothing_elsewhere(
    chromium: Any, job: Path, workspace: Workspace, watch: OpenWatch
) -> None:
    page, problems = watch(workspace.folder), list[str]()
    tab = opened(chromium, page, "/", problems)
    tab.wait_for_selector("#connection[data-state=live]")
    assert "never ran" in tab.inner_text("#jobs")
    # It keeps its focus when the part around it is replaced.
    tab.focus("#jobs a")
    assert ended(run(job))[0] == 0
    tab.wait_for_selector("#jobs >> text=40 of 40")
    assert tab.evaluate("document.activeElement.textContent") == "job"
    tab.wait_for_selector("#announcement:has-text('job: done')", state="attached")
    for path in ("/jobs/job", "/jobs/job/rows", "/jobs/job/answers", "/jobs/job/row?key=7", "/runs", "/schedule"):
        other = opened(chromium, page, path, problems, width=390)
        other.wait_for_selector("h1, h2")
        assert other.evaluate("document.documentElement.scrollWidth") == 390, path
    assert problems == []
    page.close()
    tab.wait_for_selector("#connection[data-state=lost]")
    assert "Not connected" in tab.inner_text("#connection")


def test_a_keyboard_reaches_the_content_first_and_every_control(
    chromium: Any, job: Path, workspace: Workspace, watch: OpenWatch
) -> None:
    assert ended(run(job))[0] == 0
    page, problems = watch(workspace.folder), list[str]()
    tab = opened(chromium, page, "/jobs/job", problems)
    tab.keyboard.press("Tab")
    assert tab.evaluate("document.activeElement.textContent") == "Skip to the content"
    tab.keyboard.press("Enter")
    assert tab.evaluate("document.activeElement.id") == "main"
    names = tab.evaluate(
        "[...document.querySelectorAll('a, button, input:not([type=hidden]), summary, [tabindex=\"0\"]')].map(one => "
        "one.textContent.trim() || one.getAttribute('aria-label') || document.querySelector(`label[for='${one.id}']`)"
        "?.textContent || '')"
    )
    assert names and all(names)
    assert re.findall(r"<h(\d)", tab.content())[:2] == ["1", "2"]
    assert problems == []
