"""One DuckDB database in memory for all reading of tests: a new one takes longer than most queries."""

import functools
import os

import duckdb


def shared_cursor() -> duckdb.DuckDBPyConnection:
    """Return a connection of its own to the database, which has no tables; close it, and detach what is attached."""
    # A forked process must not use that of its parent.
    return _database(os.getpid()).cursor()


@functools.cache
def _database(process: int) -> duckdb.DuckDBPyConnection:
    # A part may be written again within the resolution of a file's time.
    return duckdb.connect(config={"threads": 1, "enable_external_file_cache": False})
