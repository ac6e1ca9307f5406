"""The progress of a run in a notebook: one line of Jupyter or marimo that is overwritten; nothing elsewhere."""

import sys
import time
from collections.abc import Callable
from html import escape
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.monitoring.progress import format_progress
from pipelines.monitoring.run_heartbeat import read_last_heartbeat

UPDATE_SECONDS = 0.5
"""Interval between updates."""
Display = Callable[[str, str], None]
"""Shows a line, as text and as HTML, in place of the one before."""


class LiveView:
    """The progress of one run; created and updated in the thread of the cell."""

    def __init__(self, state: Path, job: str, shown: str) -> None:
        self._state, self._job, self._shown = state, job, shown
        self._began = time.time()
        self._display = _jupyter_display() or _marimo_display()
        self._line = ""
        self.end("starting")

    def update(self) -> None:
        """Show the progress once the run has written any."""
        if self._display is None:
            return
        heartbeat = read_last_heartbeat(self._state, self._job)
        if heartbeat is None or heartbeat["began"] < self._began:
            return
        line = format_progress(self._job, heartbeat, 200)
        bar = f'<progress max="{heartbeat["rows"] or 1}" value="{heartbeat["rows_done"]}"></progress> '
        self._show(line, bar)

    def end(self, words: str) -> None:
        """Show the final line."""
        self._show(f"{self._shown}: {words}")

    def _show(self, line: str, bar: str = "") -> None:
        # An unchanged line would make a notebook flicker.
        if self._display is not None and line != self._line:
            self._line = line
            self._display(line, f"<div>{bar}{escape(line)}</div>")


def _jupyter_display() -> Display | None:
    ipython = sys.modules.get("IPython")
    if ipython is None or ipython.get_ipython() is None:
        return None
    display = import_module("IPython.display")
    handle: Any = None

    def show(line: str, page: str) -> None:
        nonlocal handle
        # Viewers without HTML, such as a terminal's console or a notebook's text export, show the line.
        bundle = {"text/html": page, "text/plain": line}
        if handle is None:
            handle = display.display(bundle, raw=True, display_id=True)
        else:
            handle.update(bundle, raw=True)

    return show


def _marimo_display() -> Display | None:
    marimo = sys.modules.get("marimo")
    if marimo is None or not marimo.running_in_notebook():
        return None

    def show(line: str, page: str) -> None:
        marimo.output.replace(marimo.Html(page))

    return show
