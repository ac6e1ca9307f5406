"""Where a value of a file came from: a line of it, or a flag of the command line that replaced it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pipelines.yaml_lines import KeyPath


@dataclass(frozen=True, slots=True)
class Places:
    """Tells the WHERE of a message for each key path of one file."""

    file: str
    """The path as the user gave it."""
    lines: Mapping[KeyPath, int]
    raw: Mapping[str, Any] = field(repr=False)
    """The file's values, flags applied."""
    flags: Mapping[KeyPath, str] = field(default_factory=dict)
    """Key path -> the flag that set it."""

    def at(self, path: KeyPath) -> str:
        """`jobs/x.yaml:14: steps.label.model`, or the flag; without a key path the file alone."""
        if not path:
            return self.file
        for key, flag in self.flags.items():
            if key == path:
                return flag
            if key == path[: len(key)] or (path == key[: len(path)] and path not in self.lines):
                return f"{flag}: {self.dotted(path)}"
        line = self.line(path)
        return f"{self.file}:{line}: {self.dotted(path)}" if line else f"{self.file}: {self.dotted(path)}"

    def line(self, path: KeyPath) -> int:
        """The line of the key, or of the nearest key around it; 0 in an empty file."""
        return next((self.lines[path[:n]] for n in range(len(path), -1, -1) if path[:n] in self.lines), 0)

    def dotted(self, path: KeyPath) -> str:
        """As `--set` takes it: steps by their names where they have one."""
        parts = list(path)
        if len(path) > 1 and path[0] == "steps" and isinstance(path[1], int):
            steps = self.raw.get("steps")
            step = steps[path[1]] if isinstance(steps, list | tuple) and path[1] < len(steps) else None
            name = step.get("name") if isinstance(step, Mapping) else None
            if isinstance(name, str) and name and (len(path) < 3 or path[2] != "name"):
                parts[1] = name
        return ".".join(map(str, parts))
