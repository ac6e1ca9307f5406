"""Inclusion of files in the values of a job file: prompts as texts, output schemas as outputs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from connectors.endpoints.conversation.conversation_endpoint import ConversationStep
from connectors.errors import JobError, KeyPath
from connectors.registry import ENDPOINTS
from pipelines.config.included_files.prompt_files import prompt_references, replaced
from pipelines.config.included_files.schema_file import read_output_schema
from pipelines.config.included_files.workspace_files import WorkspaceFiles
from pipelines.config.key_locations import IncludedPart, KeyLocations
from pipelines.config.validation_messages import format_value


def include_files(
    keys: KeyLocations, folder: Path, files: WorkspaceFiles
) -> tuple[dict[str, Any], Mapping[KeyPath, IncludedPart]]:
    """Return the values of a job file with the contents of files in place of their names, and what is from which file.

    `keys`: the values, flags applied. `folder`: the workspace, at which relative paths start. JobError, with its
    location, for a file that cannot be included.
    """
    values: dict[str, Any] = dict(keys.values)
    steps = values.get("steps")
    if not isinstance(steps, list):
        return values, {}
    included: dict[KeyPath, IncludedPart] = {}
    complete: list[Any] = []
    for index, step in enumerate(steps):
        if isinstance(step, Mapping):
            try:
                step, parts = _complete_step(step, ("steps", index), keys, folder, files)
            except JobError as exc:
                if exc.key_path is None:
                    raise
                raise exc.located(keys.locate(("steps", index, *exc.key_path))) from exc
            included |= parts
        complete.append(step)
    return {**values, "steps": complete}, included


def _complete_step(
    step: Mapping[str, Any],
    path: KeyPath,
    keys: KeyLocations,
    folder: Path,
    files: WorkspaceFiles,
) -> tuple[Mapping[str, Any], Mapping[KeyPath, IncludedPart]]:
    included: dict[KeyPath, IncludedPart] = {}

    def read(name: Any, where: KeyPath) -> str:
        if not isinstance(name, str) or not name:
            raise JobError(where, f"found {format_value(name)}, expected a path", "write e.g. prompts/label.md")
        return files.read(name, folder, keys.locate((*path, *where)))

    for place, name in list(prompt_references(step)):
        step = replaced(step, place, read(name, (*place, "file")))
        included[(*path, *place)] = IncludedPart(name)
    name = step.get("output_schema")
    endpoint = ENDPOINTS.get(str(step.get("endpoint")))
    has_outputs = endpoint is not None and issubclass(endpoint, ConversationStep)
    if isinstance(name, str) and has_outputs and step.get("output") is None:
        output, included[(*path, "output")] = read_output_schema(read(name, ("output_schema",)), name)
        step = {**{key: value for key, value in step.items() if key != "output_schema"}, "output": output}
    return step, included
