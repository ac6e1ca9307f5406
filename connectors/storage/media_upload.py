"""Files of rows on their way to an object store: written on this machine, put before the rows that name them."""

import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from connectors.storage import object_store

AT_A_TIME = 16


class MediaUpload:
    """A folder for the time of this process (below TMPDIR), and where its files go."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._folder: Path | None = None
        self._done: set[str] = set()

    @property
    def folder(self) -> Path:
        """Made when it is first asked for; a later step of the row reads what an earlier one wrote."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rowmill-files-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def upload(self) -> None:
        """Put what was written since the last time; a name tells its content, so that none is put twice."""
        if self._folder is None:
            return
        new = [path for path in self._folder.iterdir() if path.name[0] != "." and path.name not in self._done]
        with ThreadPoolExecutor(AT_A_TIME, "put") as pool:
            for path in pool.map(self._put, new):
                self._done.add(path.name)

    def _put(self, path: Path) -> Path:
        object_store.put(f"{self._url}/{path.name}", path)
        return path
