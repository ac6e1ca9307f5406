"""Text files that a job file names; each is read once. As its other paths, they may be anywhere."""

import os
from pathlib import Path

from msgspec import Struct, field

from connectors.errors import JobError
from pipelines.config.included_files.text_file import read_text_file


class WorkspaceFiles(Struct):
    """The texts of files by their path, as far as they were read."""

    _texts: dict[Path, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        """Name the files without their texts."""
        return f"WorkspaceFiles({', '.join(map(str, self._texts))})"

    def read(self, name: str, folder: Path, where: str) -> str:
        """Return the text of a file; a relative name starts at `folder`, the workspace.

        JobError for a file that has no text or cannot be read. `where` names the key, for errors about the name.
        """
        path = Path(os.path.realpath(folder / name))
        if path in self._texts:
            return self._texts[path]
        if not path.exists():
            raise JobError(where, f"{name}: no such file", f"the path starts at {folder}")
        if not path.is_file():
            raise JobError(where, f"{name} is {'a folder' if path.is_dir() else 'not a file'}", "name a text file")
        text = read_text_file(path, name)
        if not text.strip():
            raise JobError(where, f"{name} is empty", "write its text, or leave the key out")
        if "\0" in text:
            line = text.count("\n", 0, text.index("\0")) + 1
            raise JobError(f"{name}:{line}", "a control character (code 0)", "delete it")
        self._texts[path] = text
        return text
