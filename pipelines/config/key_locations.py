"""Where each key of a job file or workspace comes from: file and line, or a flag of the command line."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from connectors.errors import KeyPath, dotted


@dataclass(frozen=True, slots=True)
class KeyLocations:
    """The origin of each key path of one file."""

    file: str
    """The path as the user gave it; empty for values from Python."""
    lines: Mapping[KeyPath, int]
    values: Mapping[str, Any] = field(repr=False)
    """The file's values, flags applied."""
    flags: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> the flag that set it."""
    origins: Mapping[KeyPath, KeyPath] = field(default_factory=dict)
    """Key path that the user did not write -> what it was made of; longer paths first."""

    def locate(self, path: KeyPath) -> str:
        """Return `jobs/x.yaml:14: steps.label.model`, or the flag that set it; for an empty path the file alone."""
        if not path:
            return self.file
        path = next((found for made, found in self.origins.items() if path[: len(made)] == made), path)
        for key, flag in self.flags.items():
            if key == path:
                return flag
            if key == path[: len(key)] or (path == key[: len(path)] and path not in self.lines):
                return f"{flag}: {self._named(path)}"
        line = self.line(path)
        if not self.file:
            return self._named(path)
        return f"{self.file}:{line}: {self._named(path)}" if line else f"{self.file}: {self._named(path)}"

    def line(self, path: KeyPath) -> int:
        """Return the line of the key, or of the nearest key around it; 0 in an empty file."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

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
