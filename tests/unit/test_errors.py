"""Errors: location, finding and remedy; escaped messages; suggestions; errors of the system and of DuckDB."""

import errno
import pickle
from pathlib import Path

import pytest

from connectors.errors import (
    DataError,
    FieldError,
    JobError,
    RowmillError,
    Stopped,
    closest,
    did_you_mean,
    dotted,
    from_duckdb_error,
    from_os_error,
)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (JobError("x.yaml:3: name", "missing", "write name: a"), "x.yaml:3: name: missing; write name: a"),
        (JobError(("steps", "label", "messages", 0), "has no text", "write one"), "steps.label.messages.0: {rest}"),
        (JobError(Path("a/x.yaml"), "has no text", "write one"), "a/x.yaml: {rest}"),
        (DataError("out", "cannot be read"), "out: cannot be read"),
        (JobError("", "anything"), "anything"),
    ],
)
def test_a_message_has_location_finding_and_remedy(error: RowmillError, message: str) -> None:
    assert str(error) == message.replace("{rest}", "has no text; write one")
    assert error.exit_code == 2


def test_only_a_tuple_is_a_key_path_and_a_located_error_has_none() -> None:
    error = DataError(("source", "key"), "is not unique", "add a column")
    assert (error.key_path, dotted(("source", "key"))) == (("source", "key"), "source.key")
    located = error.located("x.yaml:6: source.key")
    assert (type(located), located.key_path) == (DataError, None)
    assert str(located) == "x.yaml:6: source.key: is not unique; add a column"


def test_an_error_survives_its_way_between_processes() -> None:
    error = pickle.loads(pickle.dumps(JobError(("steps", 0), "broken", "fix it")))
    assert (type(error), error.where, error.found, error.remedy) == (JobError, ("steps", 0), "broken", "fix it")


def test_characters_that_would_break_the_line_are_escaped() -> None:
    assert str(JobError("x", "found \x1b[31m\n\u202e", "fix it")) == "x: found \\x1b[31m\\n\\u202e; fix it"
    assert str(Stopped("é is fine\r")) == "é is fine\\r"


def test_a_field_error_is_a_value_error_with_fields() -> None:
    error = FieldError("names a column twice", "name each once", ("source", "key"))
    assert isinstance(error, ValueError)
    assert (str(error), error.path) == ("names a column twice; name each once", ("source", "key"))


def test_the_closest_known_word_is_suggested() -> None:
    known = ["concurrency", "budget", "retry"]
    assert (closest("concurency", known), closest("xyz", known), closest("a", ())) == ("concurrency", None, None)
    assert did_you_mean("concurency", known) == "did you mean concurrency?"
    assert did_you_mean("xyz", known) == "known here: budget, concurrency, retry"
    assert did_you_mean("xyz", ()) == "no names are known here"


def test_a_full_disk_stops_a_run_and_any_other_refusal_is_a_data_error() -> None:
    full = from_os_error(OSError(errno.ENOSPC, "No space left on device", "/out/a"))
    assert (type(full), str(full)) == (Stopped, "/out/a: disk full; make room and run again")
    refused = from_os_error(PermissionError(errno.EACCES, "Permission denied", "/out/a"))
    assert isinstance(refused, DataError)
    assert str(refused).startswith("/out/a: Permission denied; ")


class InvalidInputException(Exception):
    """Named as DuckDB names it."""


def test_a_damaged_parquet_file_is_named() -> None:
    error = from_duckdb_error(
        InvalidInputException("Invalid Input Error: No magic bytes found at end of file 'out/a.parquet'\nLINE 1")
    )
    assert isinstance(error, DataError)
    assert (error.where, error.found) == (
        "out/a.parquet",
        "cannot be read (No magic bytes found at end of file 'out/a.parquet')",
    )
    assert from_duckdb_error(ValueError("anything")) is None
