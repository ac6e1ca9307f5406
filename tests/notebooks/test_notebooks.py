"""Every notebook runs from its first cell to its last, and what is committed shows its pictures without being run."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
LARGEST = 400_000
"""Bytes of a committed notebook."""
COLOURS = 8
"""A picture with fewer shows nothing."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def outputs(notebook: Any) -> Iterator[Any]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def pictures(notebook: Any) -> list[Image.Image]:
    found = [one["data"]["image/png"] for one in outputs(notebook) if "image/png" in one.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in found]


def check_pictures(notebook: Any) -> None:
    shown = pictures(notebook)
    assert shown
    for picture in shown:
        # None: more colours than were asked for.
        colours = picture.getcolors(1 << 16)
        assert colours is None or len(colours) >= COLOURS
        assert min(picture.size) > 50


def test_there_are_five_notebooks() -> None:
    assert len(NOTEBOOKS) == 5


@each
async def test_a_notebook_runs_without_an_error_draws_and_writes_nothing_beside_itself(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": path.parent}})
    await client.async_execute()
    assert {beside.suffix for beside in path.parent.iterdir() if beside.name[0] != "."} == {".ipynb"}
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    check_pictures(notebook)


@each
def test_a_committed_notebook_shows_its_pictures_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    check_pictures(notebook)
    assert path.stat().st_size < LARGEST
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [one for one in outputs(notebook) if one.output_type == "error"]


@each
def test_a_committed_notebook_names_no_place_of_the_machine_that_ran_it(path: Path) -> None:
    told = json.dumps(
        [{**one, "data": {**one.get("data", {}), "image/png": ""}} for one in outputs(nbformat.read(path, 4))]
    )
    for place in ("/tmp/", "/home/", "/root/", "/Users/", "/work/", "site-packages", "127.0.0.1"):
        assert place not in told
