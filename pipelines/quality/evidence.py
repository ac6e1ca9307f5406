"""Evidence: for each quotation in an answer its place in the column that it quotes, and how it matches."""

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa

from connectors.errors import JobError, KeyPath, did_you_mean
from connectors.records import TEXT_PREFIX
from pipelines.quality.quotations import QuotedText


class EvidenceColumns:
    """The columns that `evidence` adds to a step: `<output>_start`, `<output>_end` and `<output>_match`."""

    def __init__(
        self,
        evidence: Mapping[str, str],
        outputs: Sequence[pa.Field],
        columns: Mapping[str, pa.DataType],
        where: KeyPath,
    ) -> None:
        """`columns`: those of the row before the step. JobError below `where` if one of both has no text."""
        kinds = {field.name: field.type for field in outputs}
        fields: list[pa.Field] = []
        for output, column in evidence.items():
            here = (*where, output)
            if output not in kinds:
                raise JobError(here, f"no output {output} of this step", did_you_mean(output, kinds))
            if not _is_text(kinds[output]) and not _is_list_of_texts(kinds[output]):
                raise JobError(here, f"{output} has the type {kinds[output]}", "name an output of texts")
            if column not in columns:
                raise JobError(here, f"no column {column} before this step", did_you_mean(column, columns))
            if not (_is_text(columns[column]) or _is_number(columns[column])):
                raise JobError(here, f"{column} has the type {columns[column]}", "name a column of text")
            is_list = _is_list_of_texts(kinds[output])
            for suffix, kind in (("start", pa.int64()), ("end", pa.int64()), ("match", pa.string())):
                fields.append(pa.field(f"{output}_{suffix}", pa.list_(kind) if is_list else kind))
        self._evidence = evidence
        self.fields: tuple[pa.Field, ...] = tuple(fields)
        self.columns = frozenset(evidence.values())

    def arrays(self, table: pa.Table) -> list[pa.Array]:
        """Return the columns for the rows of a table with the step's outputs, one array a field."""
        arrays: list[pa.Array] = []
        for place, (output, column) in enumerate(self._evidence.items()):
            # Of a number the text in the file.
            text_name = TEXT_PREFIX + column if TEXT_PREFIX + column in table.column_names else column
            texts = table.column(text_name).cast(pa.string()).to_pylist()
            found = [
                _places(text, quoted) for text, quoted in zip(texts, table.column(output).to_pylist(), strict=True)
            ]
            for part, field in enumerate(self.fields[3 * place : 3 * place + 3]):
                arrays.append(pa.array([row[part] for row in found], field.type))
        return arrays


def _places(text: str | None, quoted: Any) -> tuple[Any, Any, Any]:
    """Return (start, end, match) of a quotation, or three lists; nulls without a quotation."""
    if quoted is None:
        return None, None, None
    source = QuotedText(text or "")
    if isinstance(quoted, str):
        found = source.find(quoted)
        return found.start, found.end, found.match
    places = [(None, None, None) if one is None else _places_in(source, one) for one in quoted]
    return [one[0] for one in places], [one[1] for one in places], [one[2] for one in places]


def _places_in(source: QuotedText, quotation: str) -> tuple[int | None, int | None, str | None]:
    found = source.find(quotation)
    return found.start, found.end, found.match


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_list_of_texts(kind: pa.DataType) -> bool:
    return isinstance(kind, pa.ListType | pa.LargeListType) and _is_text(kind.value_type)


def _is_number(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind))
