"""Where each key of a job file or workspace comes from: file and line, or a flag of the command line."""

from collections.abc import Mapping
from typing import Any

from msgspec import Struct, field

from connectors.errors import KeyPath, dotted


class IncludedPart(Struct, frozen=True):
    """What a file gives to a job file at one key path: a text, or keys."""

    file: str
    """As the job file names it."""
    lines: Mapping[KeyPath, int] = field(default_factory=dict)
    """Of the file's keys; empty for a text."""
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    """Key path below the key that was included -> key path in the file."""

    def locate(self, path: KeyPath, named: str, text_line: int | None) -> str:
        """Return `prompts/label.md:3: steps.label.prompt` for a text, or `schemas/x.json:7: properties.topic`.

        `path`: below the key that was included; `named`: the whole key path.
        """
        if not self.lines:
            return f"{self.file}:{text_line}: {named}" if text_line else f"{self.file}: {named}"
        depth = next((n for n in range(len(path), -1, -1) if path[:n] in self.origins), 0)
        inner = (*self.origins.get(path[:depth], ()), *path[depth:])
        line = next((self.lines[inner[:n]] for n in range(len(inner), -1, -1) if inner[:n] in self.lines), 1)
        return f"{self.file}:{line}: {dotted(inner)}" if inner else f"{self.file}:{line}"


class KeyLocations(Struct, frozen=True):
    """The origin of each key path of one file."""

    file: str
    """The path as the user gave it; empty for values from Python."""
    lines: Mapping[KeyPath, int]
    values: Mapping[str, Any]
    """The file's values, flags applied."""
    flags: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> the flag that set it."""
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    """Key path that the user did not write -> what it was made of; longer paths first."""
    included: Mapping[KeyPath, IncludedPart] = field(default_factory=dict)
    """Key path -> the file that it was read from."""

    def __repr__(self) -> str:
        """Name it without its values: some are secret."""
        return f"KeyLocations({self.file!r})"

    def locate(self, path: KeyPath, text_line: int | None = None) -> str:
        """Return `jobs/x.yaml:14: steps.label.model`, or the flag that set it; for an empty path the file alone.

        `text_line`: the line within the text at the path. In an included file, it is the location.
        """
        if not path:
            return self.file
        path = next((found for made, found in self.origins.items() if path[: len(made)] == made), path)
        for key, part in self.included.items():
            if key == path[: len(key)]:
                return part.locate(path[len(key) :], self._named(path), text_line)
        place = self._place(path)
        return f"{place}, line {text_line}" if text_line and text_line > 1 else place

    def line(self, path: KeyPath) -> int:
        """Return the line of the key, or of the nearest key around it; 0 in an empty file."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

    def _place(self, path: KeyPath) -> str:
        for key, flag in self.flags.items():
            if key == path:
                return flag
            if key == path[: len(key)] or (path == key[: len(path)] and path not in self.lines):
                return f"{flag}: {self._named(path)}"
        line = self.line(path)
        if not self.file:
            return self._named(path)
        return f"{self.file}:{line}: {self._named(path)}" if line else f"{self.file}: {self._named(path)}"

    def _named(self, path: KeyPath) -> str:
        """Return the path as `--set` takes it: a step by its name if it has one."""
        parts = list(path)
        if len(path) > 1 and path[0] == "steps" and isinstance(path[1], int):
            steps = self.values.get("steps")
            step = steps[path[1]] if isinstance(steps, list | tuple) and path[1] < len(steps) else None
            name = step.get("name") if isinstance(step, Mapping) else None
            if isinstance(name, str) and name and (len(path) < 3 or path[2] != "name"):
                parts[1] = name
        return dotted(tuple(parts))
