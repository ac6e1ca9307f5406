"""A job's tables for notebooks: results, usage and errors in polars and DuckDB, media files, nearest rows."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from html import escape
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
from msgspec.structs import replace

from connectors.contracts import Sink
from connectors.errors import JobError
from connectors.sql import literal, literal_list, literal_path
from pipelines.config.from_python.passed_job import JobLike, PassedJob
from pipelines.config.job import Job
from pipelines.config.job_graph import empty_sink
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides
from pipelines.config.workspace import Workspace
from pipelines.formatting import format_count
from pipelines.runtime.scratch_dir import scratch_folder

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from pipelines.analysis.scoring import Score
    from pipelines.analysis.similarity import Embedded

TABLES = ("results", "usage", "errors")
TABLES_MEMORY_LIMIT = "1GB"
"""Of queries over open tables; beyond it they use the disk."""
_GLOB = "/*.parquet"
"""Suffix of the location of a table that is a folder of Parquet parts."""


def read_results(
    job: JobLike, sink: str | PathLike[str] | None = None, *, workspace: str | PathLike[str] | None = None
) -> "Results":
    """Read the tables that runs of a job have written; JobError if there are none yet.

    Paths may be relative to the current folder. `sink`: the path given to `run --sink`, if it was not the job's.
    """
    passed = PassedJob.of(job, workspace)
    # The tables do not depend on rows that were passed.
    with_rows = passed if passed.has_source else replace(passed, rows="rows.parquet")
    return open_results(with_rows.load(Overrides(sink=None if sink is None else str(sink))))


def open_results(loaded: LoadedJob) -> "Results":
    """Read the tables that runs of a loaded job have written; JobError if there are none yet."""
    sink = empty_sink(loaded)
    if not sink.exists():
        flag = "" if loaded.overrides.sink is None else f" --sink {loaded.overrides.sink}"
        raise JobError(
            loaded.locate("sink"),
            f"nothing is in {loaded.job.sink.identity} yet",
            f'rowmill run {loaded.path}{flag}, or in a notebook: await run("{loaded.path}")'
            if loaded.file.shown_path
            else "run the job first",
        )
    return Results(loaded, loaded.workspace, sink)


@dataclass(frozen=True, slots=True)
class Results:
    """The tables of a job. Each access reads them again and so sees the rows of later runs."""

    loaded: LoadedJob = field(repr=False)
    workspace: Workspace = field(repr=False)
    sink: Sink = field(repr=False)

    @property
    def job(self) -> Job:
        """The job of the file."""
        return self.loaded.job

    @property
    def results(self) -> "pl.LazyFrame":
        """One row a key: key, carried columns, outputs, `_run_id`, `_row_fingerprint`; vectors are polars Arrays."""
        return self._frame("results")

    @property
    def usage(self) -> "pl.LazyFrame":
        """One row for each HTTP exchange of all runs."""
        return self._frame("usage")

    @property
    def errors(self) -> "pl.LazyFrame":
        """One row for each row of the source that has failed and not succeeded since."""
        return self._frame("errors")

    @contextlib.contextmanager
    def open_tables(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """Open a connection with views of the tables, which copies no local table.

        A DuckDB file is held open meanwhile: a run waits before it commits. Tables of an object store are copied to a
        temporary file once.
        """
        is_remote = any(isinstance(path, str) for path in self.sink.paths())
        with (
            scratch_folder(self.workspace.state) as scratch,
            _connect(scratch / "tables.duckdb" if is_remote else None, scratch) as db,
        ):
            self.sink.attach(db)
            for table, sql in self._queries().items():
                parts = None if is_remote else self._parts(table)
                if parts is None:
                    db.execute(f"create {'table' if is_remote else 'view'} {table} as {sql}")
                else:
                    db.execute(f"create view {table} as from read_parquet({literal_list(map(literal_path, parts))})")
            yield db
            self.sink.detach(db)

    def duckdb(self) -> duckdb.DuckDBPyConnection:
        """Return a new connection with the current tables `results`, `usage` and `errors`."""
        connection = _connect()
        for table in TABLES:
            parts = self._parts(table)
            if parts is None:
                # In memory: a DuckDB file that is held open would keep the next run from writing.
                connection.register("read", self._arrow(table))
                connection.execute(f"create table {table} as from read")
                connection.unregister("read")
            else:
                connection.execute(
                    f"create view {table} as from read_parquet({literal_list(map(literal_path, parts))})"
                )
        return connection

    def media(self, name: str) -> Path:
        """Return the file that a value of a results column names, written by a step or named by the source."""
        is_output = name.startswith(self.sink.files_prefix)
        folder = self.sink.files_folder if is_output else self.workspace.folder
        path = folder / (name.removeprefix(self.sink.files_prefix) if is_output else name)
        inside = (folder,) if is_output else (folder, *self.workspace.roots)
        if not any(path.resolve().is_relative_to(root.resolve()) for root in inside):
            raise JobError(name, "is not below the workspace", "only files of the job can be opened by name")
        if not path.is_file():
            raise JobError(name, "there is no such file", "name a value of a results column that holds files")
        return path

    def score(self, label: str, output: str) -> "Score":
        """Compare the answers in `output` with the column `label`, which the sink must carry over."""
        from pipelines.analysis.scoring import score

        return score(self.results, label, output)

    def embed(self, text: str, column: str | None = None) -> "Embedded":
        """Embed a text like the vectors of `column` (None: the only one), by one request to the step's provider.

        The request is not in the ledger; its cost is in the return value.
        """
        from pipelines.analysis.similarity import embed, vector_column

        return embed(self.job, self.workspace, vector_column(self.results, column), text)

    def nearest(
        self, *, key: Any = None, text: "str | Embedded | None" = None, k: int = 5, column: str | None = None
    ) -> "pl.DataFrame":
        """Return the k rows nearest to a row or to a text, with `similarity`, the cosine.

        `key`: the key of a row, a tuple if it has several columns. `column`: the vector column; None: the only one.
        """
        from pipelines.analysis.similarity import Embedded, nearest, nearest_to_row, vector_column

        name = vector_column(self.results, column)
        if (key is None) == (text is None):
            raise JobError("nearest", "needs either a key or a text", "write e.g. nearest(key=7) or nearest(text='…')")
        if text is None:
            return nearest_to_row(self.results, self.job.key, key, name, k)
        asked = text if isinstance(text, Embedded) else self.embed(text, name)
        return nearest(self.results, asked.vector, name, k)

    def _frame(self, table: str) -> "pl.LazyFrame":
        import polars as pl

        parts = self._parts(table)
        if parts is not None:
            return pl.scan_parquet(parts, glob=False)
        frame = pl.from_arrow(self._arrow(table))
        assert isinstance(frame, pl.DataFrame)
        return frame.with_columns(*_vectors(frame)).lazy()

    def _parts(self, table: str) -> list[Path] | None:
        """The files of a table that is a local folder of Parquet parts; None for other tables."""
        place = self.sink.tables()[table]
        if not place.endswith(_GLOB) or "://" in place:
            return None
        parts = sorted(Path(place.removesuffix(_GLOB)).glob("*.parquet"))
        if not parts:
            raise JobError(self.job.sink.identity, f"its table {table} is gone", f"rowmill rebuild {self.loaded.path}")
        return parts

    def _arrow(self, table: str) -> "pa.Table":
        with _connect() as db:
            self.sink.attach(db)
            found = db.sql(self._queries()[table]).to_arrow_table()
            self.sink.detach(db)
        return found

    def _queries(self) -> Mapping[str, str]:
        """By table, the SQL that reads it while the sink is attached."""
        return {
            "results": f"select * exclude (_part) from {self.sink.results_sql()}",
            "usage": f"from {self.sink.usage_sql()}",
            "errors": f"from {self.sink.errors_sql()}",
        }

    def _repr_html_(self) -> str:
        with self.duckdb() as db:
            counts = {name: _count(db, f"select count(*) from {name}") for name in TABLES}
            columns = [f"{name} {kind}" for name, kind, *_ in db.execute("describe results").fetchall()]
            cost, unpriced = db.execute(
                "select sum(cost_usd), count(*) filter (cost_usd is null) from usage"
            ).fetchall()[0]
        spent = f"${cost or 0:.6f}" + (f", {unpriced:,} exchanges without a known price" if unpriced else "")
        rows = {
            "results": f"{format_count(counts['results'], 'row')}: {', '.join(columns)}",
            "usage": f"{counts['usage']:,} exchanges, {spent}",
            "errors": f"{format_count(counts['errors'], 'row')}",
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(text)}</td></tr>" for name, text in rows.items())
        return f"<table><caption>{escape(self.job.name)}</caption>{cells}</table>"


def _vectors(frame: "pl.DataFrame") -> "Iterator[pl.Expr]":
    """Vector columns that were read as lists, as DuckDB does from Parquet, cast to arrays again."""
    import polars as pl

    for name, kind in frame.schema.items():
        if kind == pl.List(pl.Float32) and (lengths := frame[name].list.len().drop_nulls().unique()).len() == 1:
            yield pl.col(name).list.to_array(int(lengths[0]))


def _connect(file: Path | None = None, scratch: Path | None = None) -> duckdb.DuckDBPyConnection:
    db = duckdb.connect(":memory:" if file is None else file)
    if scratch is not None:
        db.execute(f"set temp_directory = {literal(scratch / 'spill')}; set memory_limit = '{TABLES_MEMORY_LIMIT}'")
    # Show timestamps as they were written, in every time zone.
    db.execute("set TimeZone = 'UTC'")
    return db


def _count(db: duckdb.DuckDBPyConnection, sql: str) -> int:
    ((value,),) = db.execute(sql).fetchall()
    return int(value)
