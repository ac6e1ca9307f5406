"""Relative paths in a SQL query, made absolute: a locked DuckDB looks for files by absolute paths alone."""

from pathlib import Path
from typing import Any

import duckdb
import orjson

from connectors.errors import JobError
from connectors.sql_tree import parsed_sql


def rooted(connection: duckdb.DuckDBPyConnection, query: str, folder: Path, where: str) -> str:
    """The query with the relative paths of table functions and of `from 'file'` starting at the folder.

    JobError, placed by `where`, for what is no single SELECT.
    """
    parsed = parsed_sql(connection, query, where, "write one SELECT")
    if len(parsed["statements"]) != 1:
        raise JobError(f"{where}: holds {len(parsed['statements'])} statements; write one SELECT")
    _root(parsed, folder)
    text = connection.execute("select json_deserialize_sql(?)", [orjson.dumps(parsed).decode()]).fetchone()
    assert text is not None
    return str(text[0])


def _root(node: Any, folder: Path) -> None:
    if isinstance(node, list):
        for inner in node:
            _root(inner, folder)
    elif isinstance(node, dict):
        if node.get("type") == "TABLE_FUNCTION":
            _root_arguments(node["function"]["arguments"], folder)
        elif node.get("type") == "BASE_TABLE" and _is_path(str(node["table_name"])):
            node["table_name"] = _absolute(str(node["table_name"]), folder)
            node["qualified_name"] = {"path": [node["table_name"]]}
        for inner in node.values():
            _root(inner, folder)


def _root_arguments(arguments: list[Any], folder: Path) -> None:
    """The first argument, a path or a list of them; named ones are options."""
    for argument in arguments[:1]:
        expression = argument["expression"]
        for constant in [expression, *(inner["expression"] for inner in expression.get("arguments", ()))]:
            literal = constant.get("literal")
            if isinstance(literal, dict) and literal.get("kind") == "STRING":
                literal["text"] = _absolute(literal["text"], folder)


def _is_path(name: str) -> bool:
    return "/" in name or name.endswith((".parquet", ".csv", ".json", ".jsonl", ".tsv", ".gz"))


def _absolute(path: str, folder: Path) -> str:
    return path if "://" in path else str(folder / path)
