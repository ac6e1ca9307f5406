"""Reads a source of a test's own files."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from connectors.contracts import SourceContext
from connectors.registry import SOURCES
from connectors.sql import identifier_list
from pipelines.preparation.source_reader import SourceReader


@dataclass(frozen=True, slots=True)
class ReadSource:
    """What a source holds."""

    types: Mapping[str, str]
    """Column -> Arrow type."""
    rows: list[tuple[Any, ...]]
    texts: Mapping[str, list[str | None]]
    """Column -> the texts of its values in row fingerprints."""
    warnings: tuple[str, ...]
    misfits: list[str | None]
    """Why the rows do not fit the sink."""


ReadSourceFixture = Callable[..., ReadSource]


@pytest.fixture
def read_source(tmp_path: Path) -> ReadSourceFixture:
    """Read a source: its kind, its path relative to the test's folder, types in the sink, further keys."""

    def read(kind: str, path: str, known: Mapping[str, str] = {}, **keys: Any) -> ReadSource:
        facts = SourceContext(tmp_path, (), tmp_path / ".scratch", known_types=known)
        with SourceReader(SOURCES[kind](**{kind: path}, **keys), facts) as reader:
            names = reader.schema.names
            chosen, cursor = reader.chosen(names), reader.cursor()
            rows = cursor.execute(f"select {identifier_list(names)} from {chosen}").fetchall()
            texts = {
                name: [text for (text,) in cursor.execute(f"select {reader.text(name)} from {chosen}").fetchall()]
                for name in names
            }
            problem = reader.problem(names) or "null"
            misfits = [found for (found,) in cursor.execute(f"select {problem} from {chosen}").fetchall()]
            types = {field.name: str(field.type) for field in reader.schema}
            return ReadSource(types, rows, texts, reader.warnings, misfits)

    return read
