"""Rendering of the live page: building blocks besides the report's, templates, and the style that both share."""

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import minijinja
from msgspec import Struct

from pipelines.reporting.page.page_templates import page_environment, stylesheet

FOLDER = Path(__file__).parent
TEMPLATES = FOLDER / "templates"


class Link(Struct, frozen=True):
    """A link to another page; `href` is made by Rowmill, never taken from a row."""

    kind: ClassVar[str] = "link"
    text: str
    href: str
    note: str = ""
    """A line below it."""
    note_css: str = ""


class Cause(Struct, frozen=True):
    """Why rows or requests failed, in plain words, with the error class."""

    kind: ClassVar[str] = "cause"
    title: str
    error_class: str


class State(Struct, frozen=True):
    """The state of a job or run: by colour, by symbol and by word."""

    kind: ClassVar[str] = "state"
    text: str
    css: str
    """good, bad, busy, wait, stop or idle."""

    @property
    def symbol(self) -> str:
        return {"good": "✓", "bad": "✕", "busy": "▶", "wait": "‖", "stop": "■", "idle": "–"}[self.css]


class Progress(Struct, frozen=True):
    """A bar of the rows that are done and of those that failed."""

    kind: ClassVar[str] = "progress"
    done: int
    """Rows that will not change any more in this run, failed ones included."""
    failed: int
    total: int
    text: str
    label: str
    """Read aloud."""
    work_percent: float = 0.0
    """Share of the run's work that is done: rows in the middle of their steps are not done yet."""

    @property
    def done_percent(self) -> float:
        return 100.0 if not self.total else round(100 * (self.done - self.failed) / self.total, 2)

    @property
    def failed_percent(self) -> float:
        # A single failed row can be seen.
        return 0.0 if not self.total or not self.failed else max(0.6, round(100 * self.failed / self.total, 2))


class Part(Struct, frozen=True):
    """A part of a page; a live one is sent again when it has changed."""

    name: str
    html: str
    is_live: bool = True


class Page(Struct, frozen=True):
    """A page with its parts."""

    title: str
    css: str
    """Its class, which lays out the parts."""
    parts: Sequence[Part]
    current: str = ""
    """Address of the entry of the navigation that it belongs to."""
    status: int = 200


def part(name: str, /, is_live: bool = True, **values: Any) -> Part:
    """Render a part by the template with its name; minijinja escapes every value."""
    return Part(name, environment().render_template(f"{name}.html", **values), is_live)


def render_page(page: Page, folder: str, events: str, is_read_only: bool) -> str:
    """Render the whole page. `events`: address of its changes; empty if nothing on it changes."""
    return environment().render_template(
        "page.html",
        page=page,
        folder=folder,
        events=events,
        is_read_only=is_read_only,
        navigation=(("Jobs", "/"), ("Runs and cost", "/runs"), ("Schedule", "/schedule")),
    )


@cache
def environment() -> minijinja.Environment:
    """Return the templates of the page and the macros that it shares with the report."""
    return page_environment(TEMPLATES)


@cache
def assets() -> Mapping[str, tuple[str, bytes]]:
    """Return address -> (media type, content) of the files that every page loads."""
    style = f"{stylesheet()}\n{(FOLDER / 'watch.css').read_text(encoding='utf-8')}"
    return {
        "/watch.css": ("text/css", style.encode()),
        "/watch.js": ("text/javascript", (FOLDER / "watch.js").read_bytes()),
        "/icon.svg": ("image/svg+xml", (FOLDER / "icon.svg").read_bytes()),
    }
