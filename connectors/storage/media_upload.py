"""Upload of rows' media files: written on this machine, uploaded before the rows that name them."""

import shutil
import tempfile
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from connectors.storage import object_store

MAX_CONCURRENT_UPLOADS = 16


class MediaUpload:
    """A folder below TMPDIR, deleted with this process, and the URL to which its files are uploaded."""

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")
        self._folder: Path | None = None
        self._uploaded: set[str] = set()

    @property
    def folder(self) -> Path:
        """Created on first use; a later step of a row reads what an earlier one wrote."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="rowmill-files-"))
            weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        return self._folder

    def upload(self) -> None:
        """Upload the files written since the last call. A name identifies its content, so no file is uploaded twice."""
        if self._folder is None:
            return
        new = [path for path in self._folder.iterdir() if path.name[0] != "." and path.name not in self._uploaded]
        with ThreadPoolExecutor(MAX_CONCURRENT_UPLOADS, "put") as pool:
            for path in pool.map(self._put, new):
                self._uploaded.add(path.name)

    def _put(self, path: Path) -> Path:
        object_store.put(f"{self._url}/{path.name}", path)
        return path
