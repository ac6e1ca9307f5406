"""Values as the YAML of a job file: readable, and read again as the same values."""

import re
from collections.abc import Mapping
from typing import Any, TextIO

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import DoubleQuotedScalarString, LiteralScalarString

from pipelines.config.yaml_reader import is_plain_text

MAX_LINE_LENGTH = 110
"""Small mappings and lists that fit are on one line."""
_OLD_VALUES = re.compile(r"y|n|yes|no|on|off|[-+]?\d[\d_]*(:[0-5]?\d)+(\.[\d_]*)?|=", re.IGNORECASE)
"""Texts that readers of YAML 1.1, such as PyYAML, take for booleans and for numbers to the base of 60."""


def write_yaml(values: Mapping[str, Any], out: TextIO) -> None:
    """Write the values as a YAML document."""
    yaml = YAML()
    yaml.width = 10**6
    yaml.indent(mapping=2, sequence=4, offset=2)
    yaml.dump(_block(values), out)


def _block(value: Any) -> Any:
    """Return a value with the style of each of its parts."""
    if isinstance(value, Mapping):
        mapping = CommentedMap({_scalar(str(key)): _part(inner) for key, inner in value.items()})
        mapping.fa.set_block_style()
        return mapping
    sequence = CommentedSeq([_part(inner) for inner in value])
    sequence.fa.set_block_style()
    return sequence


def _part(value: Any) -> Any:
    if isinstance(value, Mapping | list):
        return _flow(value) if not value or _is_short(value) else _block(value)
    if isinstance(value, str) and "\n" in value and _fits_literal(value):
        return LiteralScalarString(value)
    return _scalar(value)


def _flow(value: Any) -> Any:
    if isinstance(value, Mapping):
        mapping = CommentedMap({_scalar(str(key)): _flow(inner) for key, inner in value.items()})
        mapping.fa.set_flow_style()
        return mapping
    if isinstance(value, list):
        sequence = CommentedSeq([_flow(inner) for inner in value])
        sequence.fa.set_flow_style()
        return sequence
    return _scalar(value)


def _scalar(value: Any) -> Any:
    if not isinstance(value, str) or (is_plain_text(value) and not _OLD_VALUES.fullmatch(value)):
        return value
    return DoubleQuotedScalarString(value)


def _is_short(value: Any) -> bool:
    """Return whether a value of at most two levels fits on a line; a list of mappings never does."""
    parts = value.values() if isinstance(value, Mapping) else value
    if any(isinstance(part, str) and "\n" in part for part in parts) or len(repr(value)) > MAX_LINE_LENGTH:
        return False
    nested = [part for part in parts if isinstance(part, Mapping | list)]
    return not nested or (isinstance(value, Mapping) and all(map(_is_flat, nested)))


def _is_flat(value: Any) -> bool:
    parts = value.values() if isinstance(value, Mapping) else value
    return not any(isinstance(part, Mapping | list) or (isinstance(part, str) and "\n" in part) for part in parts)


def _fits_literal(text: str) -> bool:
    """Return whether a literal block can hold the text."""
    lines = text.split("\n")
    has_odd_edges = text[0] in " \n" or any(line != line.rstrip() for line in lines)
    return not has_odd_edges and all(line.isprintable() for line in lines)
