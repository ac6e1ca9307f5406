"""Warnings of a prepared job: a prompt without any column, answers that are billed but not stored, and the like."""

import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

from connectors.endpoints.conversation.conversation_endpoint import ConversationStep
from connectors.errors import KeyPath
from pipelines.formatting import format_count
from pipelines.preparation.prepared_job import PreparedJob, PreparedStep, file_names

TEMPLATE_KEYS = ("messages", "input", "instructions", "prompt")
"""Keys of a step whose texts are templates, the first one that a step has being its main one."""

_BRACED = re.compile(r"(?<!\{)\$?\{\s*(?:row\.)?([^{}%#]+?)\s*\}(?!\})|%\((\w+)\)s|<<?(\w+)>>?|\[\[?(\w+)\]\]?")
"""Placeholders of other template languages: `{x}`, `${x}`, `{row.x}`, `%(x)s`, `<x>`, `[x]`."""


def job_warnings(ready: PreparedJob) -> tuple[str, ...]:
    """Return a line for each setting that is allowed, but probably a mistake."""
    columns = list(ready.reader.schema.names)
    found: list[str] = []
    of_source, computed = frozenset(columns), frozenset[str]()
    for place, step in enumerate(ready.every_step):
        if isinstance(step, PreparedStep):
            found += [*_template_warnings(ready, step, columns), *_unstored_warnings(ready, step)]
        elif step.kind in ("select", "each") and step.input_columns <= of_source:
            # Names of files that other steps have made are hashes of the content.
            of_source |= {field.name for field in step.fields}
            computed |= step.computed_columns
        for name in sorted(computed.intersection(file_names(ready.every_step, place))):
            where = ready.loaded.locate("steps", step.model.name)
            found.append(
                f"{where}: {name} is computed, so a file that changes under the same name is not read again; "
                "name the files in a column of the source"
            )
        columns += [field.name for field in step.fields]
    return tuple(found)


def missing_file_warnings(ready: PreparedJob) -> tuple[str, ...]:
    """Return a line for each column that names files which do not exist; it looks at every file."""
    lines: list[str] = []
    for column, rows, example in ready.selection.fingerprints.missing_files():
        steps = ready.every_step
        step = next(step for place, step in enumerate(steps) if column in file_names(steps, place))
        where = ready.loaded.locate("steps", step.model.name)
        lines.append(
            f"{where}: {column} names files that do not exist in {format_count(rows, 'row')}, e.g. {example}; "
            "add the files"
        )
    return tuple(lines)


def _template_warnings(ready: PreparedJob, step: PreparedStep, columns: Sequence[str]) -> Iterator[str]:
    """Yield a line if the requests of a step depend on less than its texts suggest."""
    used = step.endpoint.input_columns
    texts = [(key, path, text) for key in TEMPLATE_KEYS for path, text in _texts(getattr(step.model, key, None), ())]
    is_marked = False
    for key, path, text in texts:
        for placeholder, column in _placeholders(text, columns):
            if column not in used:
                is_marked = True
                where = ready.loaded.locate("steps", step.model.name, key, *path)
                yield f"{where}: {placeholder} is sent as it is, not as the column; write {_template(column)}"
    if is_marked or used.intersection(columns):
        return
    key = texts[0][0] if texts else "messages"
    example = next((name for name in columns if name not in ready.reader.key), columns[0] if columns else "column")
    yield (
        f"{ready.loaded.locate('steps', step.model.name, key)}: uses no column, so all rows send the same request; "
        f"write e.g. {_template(example)} where a row's value belongs"
    )


def _unstored_warnings(ready: PreparedJob, step: PreparedStep) -> Iterator[str]:
    """Yield a line for each kind of answer that is billed and that no column holds."""
    if not isinstance(step.model, ConversationStep):
        return
    modalities = step.model.extra_body.get("modalities")
    if isinstance(modalities, Sequence) and "audio" in modalities:
        where = ready.loaded.locate("steps", step.model.name, "extra_body", "modalities")
        found = "the sound of answers is billed, but only its transcript is stored"
        yield f"{where}: {found}; endpoint: speech stores sound"
    for place, tool in enumerate(step.model.tools or ()):
        if tool.get("type") == "image_generation":
            where = ready.loaded.locate("steps", step.model.name, "tools", place)
            yield f"{where}: pictures of this tool are billed, but not stored; endpoint: image_generation stores them"


def _placeholders(text: str, columns: Collection[str]) -> Iterator[tuple[str, str]]:
    """Yield (as written, column) for names of columns in the syntax of another template language."""
    by_name = {column.casefold(): column for column in columns}
    if (column := by_name.get(text.strip().casefold())) is not None:
        yield text.strip(), column
    for match in _BRACED.finditer(text):
        name = next(filter(None, match.groups()), "")
        if (column := by_name.get(name.casefold())) is not None:
            yield match[0], column


def _template(column: str) -> str:
    return f"{{{{ {column} }}}}" if column.isidentifier() else f'{{{{ row["{column}"] }}}}'


def _texts(value: Any, path: KeyPath) -> Iterator[tuple[KeyPath, str]]:
    """Yield (path, text) of every text in a value of a step, deep in its lists and mappings."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, Mapping):
        for name, part in value.items():
            yield from _texts(part, (*path, name))
    elif isinstance(value, Sequence):
        for index, part in enumerate(value):
            yield from _texts(part, (*path, index))
