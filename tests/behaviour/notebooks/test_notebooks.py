"""Every notebook runs from its first cell to its last, and the committed one has its pictures."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from jupyter_client.manager import KernelManager
from nbclient import NotebookClient
from PIL import Image

from tests.support.exhaustive import marks
from tests.support.forked import command_line

ROOT = Path(__file__).parents[3]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
MAX_NOTEBOOK_BYTES = 400_000
MIN_COLOURS = 8
"""A picture with fewer colours is blank."""

RUNS_AGREE = """
import duckdb as _duckdb

_runs = {}
for _one in {id(value): value for value in Out.values()}.values():
    if type(_one).__name__ == "RunReport" and _one.tables["usage"].endswith(".parquet"):
        _runs.setdefault(_one.run_id, []).append(_one)
for _run_id, _reports in _runs.items():
    _found = _duckdb.sql(
        "select count(*), coalesce(sum(input_tokens), 0), coalesce(sum(output_tokens), 0), coalesce(sum(cost_usd), 0) "
        f"from '{_reports[0].tables['usage']}' where run_id = '{_run_id}'"
    ).fetchall()[0]
    _names = ("requests", "input_tokens", "output_tokens", "cost_usd")
    _sums = [sum(getattr(one, name) for one in _reports) for name in _names]
    assert all(abs(a - b) < 1e-9 for a, b in zip(_found, _sums)), (_found, _sums)
for _one in {_reports[-1].tables["results"]: _reports[-1] for _reports in _runs.values()}.values():
    _rows = _duckdb.sql(f"select count(*) from '{_one.tables['results']}'").fetchall()[0]
    assert _rows == (_one.rows_ok,)
"""
"""A last cell: the figures of every run report equal those of SQL over its tables; of the last one the rows, too."""
NUMBERS_AGREE = {
    "01_first_job": """
_row = quickstart.duckdb().sql("select count(*), avg((sentiment = label)::int) from results").fetchall()[0]
assert _row[0] == score.rows and abs(_row[1] - score.accuracy) < 1e-12
""",
    "02_cost_and_limits": """
_row = rehearsal.duckdb().sql("select (select count(*) from results), sum(cost_usd) from usage").fetchall()[0]
assert _row[0] == rows and abs(_row[1] - usd) < 1e-12
""",
    "03_semantic_search": """
_near = articles.nearest(key=("fra", 26), k=5)
_sql = articles.duckdb().sql(
    "select a.language, a.article, list_cosine_similarity(a.vector::float[], b.vector::float[]) as s "
    "from results a, (select vector from results where code = 'fra' and article = 26) b "
    "where not (a.code = 'fra' and a.article = 26) order by s desc limit 5").fetchall()
assert [(x["language"], x["article"]) for x in _near.iter_rows(named=True)] == [row[:2] for row in _sql]
assert max(abs(x - row[2]) for x, row in zip(_near["similarity"], _sql)) < 1e-5
""",
    "04_two_prompts_against_labels": """
_a, _b = a.results.collect(), b.results.collect()
_row = _duckdb.sql(
    "select count(*), count(*) filter (x.sentiment = y.sentiment), avg((x.sentiment = x.label)::int), "
    "avg((y.sentiment = y.label)::int) from _a x join _b y using (id)").fetchall()[0]
assert both.agreement.row(0)[1:3] == _row[:2]
assert abs(a.score("label", "sentiment").accuracy - _row[2]) < 1e-12
assert abs(b.score("label", "sentiment").accuracy - _row[3]) < 1e-12
""",
    "05_audio_and_images": """
assert _duckdb.sql("select count(*) from words").fetchall()[0] == (heard.duckdb().sql(
    "select sum(len(heard.words)) from results").fetchall()[0][0],)
""",
    "06_packing": """
_sql = "select count(*), sum(cost_usd) from usage"
_found = [read_results(job).duckdb().sql(_sql).fetchall()[0] for job in packed.values()]
assert [row[0] for row in _found] == table["requests"].to_list()
assert max(abs(a - row[1]) for a, row in zip(table["usd"], _found)) < 1e-9
""",
    "07_from_a_frame": """
_row = _duckdb.sql("select count(*), count(*) filter (sentiment = label) from labelled").fetchall()[0]
_right = _duckdb.sql(
    f"select count(*) from '{report.tables['results']}' r join reviews using (id) where sentiment = label"
).fetchall()[0][0]
assert _row == (500, _right)
""",
    "08_documents": """
_row = pieces.duckdb().sql(
    "select count(*), count(*) filter (length(piece) = piece_end - piece_start) from results").fetchall()[0]
assert _row == (pieces.results.select(pl.len()).collect().item(),) * 2
for _one in citations.to_dicts():
    _places = pieces.duckdb().sql(
        "select substr(piece, ? - piece_start + 1, ?) from results where title = ? and piece_start <= ? "
        "and piece_end >= ? + length(?)",
        params=[_one["character"], len(_one["quote"]), _one["title"], _one["character"], _one["character"],
                _one["quote"]]).fetchall()
    assert {text for (text,) in _places} == {_one["quote"]}
""",
}
"""For each notebook: the figures that it computes equal those of SQL."""

FORKED_CHILDREN = """
from pipelines.runtime import child_process as _child_process
_child_process.COMMAND = tuple({})
"""
"""The processes of runs are forked: their start would take most of the time."""

SLOW = ("04_two_prompts_against_labels", "05_audio_and_images", "06_packing")
"""Notebooks that take half of the time; the jobs that they run are tested elsewhere."""

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])


def outputs(notebook: nbformat.NotebookNode) -> Iterator[nbformat.NotebookNode]:
    for cell in notebook.cells:
        yield from cell.get("outputs", ())


def pictures(notebook: nbformat.NotebookNode) -> list[Image.Image]:
    images = [output["data"]["image/png"] for output in outputs(notebook) if "image/png" in output.get("data", {})]
    return [Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB") for text in images]


def check_pictures(notebook: nbformat.NotebookNode) -> None:
    shown = pictures(notebook)
    assert shown
    for picture in shown:
        # None: more than 65,536 colours.
        colours = picture.getcolors(1 << 16)
        assert colours is None or len(colours) >= MIN_COLOURS
        assert min(picture.size) > 50


def test_there_are_eight_notebooks() -> None:
    assert len(NOTEBOOKS) == 8


@each
def test_a_notebook_ends_with_what_to_do_next(path: Path) -> None:
    assert nbformat.read(path, 4).cells[-1].source.startswith("## Next\n")


@pytest.fixture(scope="module")
def kernel() -> Iterator[KernelManager]:
    """One process for all notebooks: most of the time would be its start."""
    manager = KernelManager(kernel_name="python3")
    manager.start_kernel(cwd=str(ROOT / "notebooks"))
    yield manager
    manager.shutdown_kernel()
    manager.cleanup_resources()


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=marks(path.stem in SLOW), id=path.stem) for path in NOTEBOOKS]
)
def test_a_notebook_runs_and_its_figures_are_those_of_sql(path: Path, kernel: KernelManager) -> None:
    notebook = nbformat.read(path, 4)
    first = f"%reset -f in out\n%reset -f\n%cd -q {path.parent}\n{FORKED_CHILDREN.format(command_line())}"
    notebook.cells.insert(0, nbformat.v4.new_code_cell(first))
    notebook.cells.append(nbformat.v4.new_code_cell(RUNS_AGREE + NUMBERS_AGREE[path.stem]))
    client = NotebookClient(notebook, km=kernel, timeout=120)
    client.execute()
    client.kc.stop_channels()
    # It writes nothing into its folder.
    assert {file.suffix for file in path.parent.iterdir() if file.name[0] != "."} == {".ipynb"}
    assert not [one for one in outputs(notebook) if one.output_type == "error"]
    check_pictures(notebook)


@each
def test_a_committed_notebook_has_its_pictures_and_is_small(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    check_pictures(notebook)
    assert path.stat().st_size < MAX_NOTEBOOK_BYTES
    assert all(cell.execution_count for cell in notebook.cells if cell.cell_type == "code")
    assert not [one for one in outputs(notebook) if one.output_type == "error"]


@each
def test_a_committed_notebook_names_no_path_of_the_machine_that_ran_it(path: Path) -> None:
    shown = json.dumps(
        [{**one, "data": {**one.get("data", {}), "image/png": ""}} for one in outputs(nbformat.read(path, 4))]
    )
    for place in ("/tmp/", "/home/", "/root/", "/Users/", "/work/", "site-packages", "127.0.0.1"):
        assert place not in shown
