"""The template engine of all pages: it escapes every value, and has the macros of `blocks.html`."""

import base64
import hashlib
from pathlib import Path

import minijinja

FOLDER = Path(__file__).parent


def page_environment(folder: Path) -> minijinja.Environment:
    """Return an environment with the templates of a folder and those of this package.

    minijinja escapes every value, since the names of the templates end with .html.
    """

    def load(name: str) -> str | None:
        file = next((place / name for place in (folder, FOLDER) if (place / name).is_file()), None)
        return None if file is None else file.read_text(encoding="utf-8")

    return minijinja.Environment(loader=load)


def stylesheet() -> str:
    """Return the style of all pages."""
    return (FOLDER / "page.css").read_text(encoding="utf-8")


def content_hash(text: str) -> str:
    """Return the source expression that allows this inline text in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
