"""Jobs whose rows become several."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.conftest import Workspace
from tests.support.local_steps import ASK, PIECES

Documents = dict[int, list[str] | None]


class DocumentJobs:
    """Documents of words, and jobs over them."""

    def __init__(self, workspace: Workspace) -> None:
        self.workspace = workspace

    def write(self, documents: Documents) -> None:
        """Write the documents: id -> words."""
        lines = [orjson.dumps({"id": number, "words": words}).decode() for number, words in documents.items()]
        self.workspace.write("docs.jsonl", "".join(f"{line}\n" for line in lines))

    def job(self, *steps: str, **blocks: str) -> Path:
        """A job over the documents; by default each word is asked about."""
        steps = steps or (PIECES, ASK)
        blocks = {"source": "{jsonl: docs.jsonl, key: id}", **blocks}
        return self.workspace.job(steps=f"[{', '.join(steps)}]", **blocks)


@pytest.fixture
def documents(workspace: Workspace) -> DocumentJobs:
    """Documents of words in the workspace of the scripted provider."""
    return DocumentJobs(workspace)


Facts = Callable[[], list[tuple[Any, ...]]]


@pytest.fixture
def facts(workspace: Workspace, read: Any) -> Facts:
    """The results: (id, index, fact) of each child in order."""

    def rows() -> list[tuple[Any, ...]]:
        found = read(workspace.folder / "out")
        return sorted((row["id"], row["piece_index"], row["fact"]) for row in found)

    return rows
