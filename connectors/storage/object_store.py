"""Objects at `s3://`, `gs://` and `az://`: read in ranges, written whole; credentials from the environment alone."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from msgspec import Struct

from connectors.errors import DataError, JobError, KeyPath
from connectors.storage.compressed_files import has_suffix

SCHEMES = ("s3", "gs", "az")
CREDENTIAL_VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""The variables that a message names; https://developmentseed.org/obstore lists all of them."""
MAX_RETRIES = 6
MAX_RETRY_SECONDS = 60
"""How long a request without a reply is retried."""
DOWNLOAD_CHUNK_BYTES = 8 << 20
MAX_ERROR_CHARACTERS = 300
"""Length of the store's error text in a message."""


class StoredObject(Struct, frozen=True):
    """An existing object."""

    url: str
    size: int
    modified: datetime
    version: str = ""
    """It differs once the object is replaced; empty if it was not listed."""

    @property
    def name(self) -> str:
        """The part of the URL after the last slash."""
        return self.url.rpartition("/")[2]


def is_url(path: str) -> bool:
    """Whether a path of a job file is an object store's URL; JobError for an unknown scheme."""
    scheme, separator, _ = path.partition("://")
    if not separator:
        return False
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise JobError(path, f"{scheme}:// is not known", f"write the path of a file or folder, or one of {known}")
    return True


def normalize_url(url: str) -> str:
    """Return one text for one place: without a slash at its end and without double slashes."""
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise JobError(url, "names no bucket, or has .. in it", f"write e.g. {scheme}://bucket/folder")
    return f"{scheme}://{'/'.join(parts)}"


def check_installed(where: KeyPath) -> None:
    """JobError if the packages for object stores are missing. `where`: the key that needs them."""
    try:
        import fsspec  # noqa: F401
        import obstore  # noqa: F401
    except ImportError as exc:
        raise JobError(
            where, "object stores need the packages obstore and fsspec", "pip install 'rowmill[cloud]'"
        ) from exc


def uses_plain_http() -> bool:
    """Whether the environment names an S3 endpoint without TLS, as a local server has."""
    return os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")


def objects_at(pattern: str, suffixes: Sequence[str], others: list[str] | None = None) -> list[StoredObject]:
    """Return the object of this URL; or those below it that end in one of the suffixes, except names that begin with a
    dot or an underscore; or those that a glob (`*`, `**`, `?`, `[ab]`) names. Sorted by URL.

    `others` gets the URLs of the objects below it that end in none of the suffixes.
    """
    url = normalize_url(pattern)
    single = head(url)
    if single is not None:
        return [single]
    hidden = re.compile(r"(^|/)[._]")
    visible = [one for one in list_objects(url) if not hidden.search(one.url[len(url) + 1 :])]
    below = [one for one in visible if has_suffix(one.name, suffixes)]
    if below:
        if others is not None:
            others += [one.url for one in visible if not has_suffix(one.name, suffixes)]
        return below
    plain = re.split(r"[*?\[]", url, maxsplit=1)[0]
    if plain == url:
        return []
    wanted = re.compile(_regex(url), re.DOTALL)
    return [one for one in list_objects(plain.rpartition("/")[0]) if wanted.fullmatch(one.url)]


def head(url: str) -> StoredObject | None:
    """Return the object if it exists."""
    store, key = _store_and_key(url)
    if not key:
        return None
    with _translated_errors(url):
        try:
            meta = store.head(key)
            return StoredObject(url, int(meta["size"]), meta["last_modified"])
        except FileNotFoundError:
            return None


def list_objects(url: str) -> list[StoredObject]:
    """Return all objects below the URL, sorted."""
    store, key = _store_and_key(url)
    bucket = url[: len(url) - len(key)].rstrip("/")
    with _translated_errors(url):
        objects = [
            StoredObject(
                f"{bucket}/{meta['path']}",
                int(meta["size"]),
                meta["last_modified"],
                f"{meta['e_tag'] or meta['last_modified']}-{meta['size']}",
            )
            for page in store.list(f"{key}/" if key else None)
            for meta in page
        ]
    return sorted(objects, key=lambda one: one.url)


def read_range(url: str, start: int, length: int) -> bytes:
    """Return a part of an object."""
    store, key = _store_and_key(url)
    with _translated_errors(url):
        return bytes(store.get_range(key, start=start, length=length)) if length else b""


def read(url: str) -> bytes | None:
    """Return an object's content; None if it does not exist."""
    store, key = _store_and_key(url)
    with _translated_errors(url):
        try:
            return bytes(store.get(key).bytes())
        except FileNotFoundError:
            return None


def download(url: str, target: Path) -> None:
    """Copy an object into a file, a few megabytes at a time."""
    store, key = _store_and_key(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        with _translated_errors(url):
            chunks = iter(store.get(key).stream(min_chunk_size=DOWNLOAD_CHUNK_BYTES))
        while True:
            with _translated_errors(url):
                chunk = next(chunks, None)
            if chunk is None:
                return
            out.write(chunk)


def put(url: str, content: Path | bytes) -> None:
    """Write an object, replacing an existing one: readers see either the old content or the new one."""
    store, key = _store_and_key(url)
    with _translated_errors(url):
        store.put(key, content)


def copy(url: str, target: str) -> None:
    """Copy an object within its bucket; the store itself does it."""
    store, key = _store_and_key(url)
    with _translated_errors(url):
        store.copy(key, _store_and_key(target)[1])


def delete(urls: Sequence[str]) -> None:
    """Delete objects of one bucket; missing ones are ignored."""
    if urls:
        store = _store_and_key(urls[0])[0]
        with _translated_errors(urls[0]), contextlib.suppress(FileNotFoundError):
            store.delete([_store_and_key(url)[1] for url in urls])


def _store_and_key(url: str) -> tuple[Any, str]:
    """Return (the bucket's store, the object's key)."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return _store(f"{scheme}://{bucket}", os.environ.get("AWS_ENDPOINT_URL")), key


@lru_cache(maxsize=64)
def _store(bucket: str, endpoint: str | None) -> Any:
    from obstore.store import from_url

    with _translated_errors(bucket):
        return from_url(
            bucket,
            client_options={"allow_http": uses_plain_http()},
            retry_config={"max_retries": MAX_RETRIES, "retry_timeout": timedelta(seconds=MAX_RETRY_SECONDS)},
        )


@contextlib.contextmanager
def _translated_errors(url: str) -> Iterator[None]:
    """Raise the store's errors as DataError."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as exc:
        text = " ".join(str(exc).split("Debug source:")[0].split())[:MAX_ERROR_CHARACTERS].rstrip(". ")
        variables = CREDENTIAL_VARIABLES[url.partition("://")[0]]
        raise DataError(url, text, f"check the URL, and {variables} in the environment") from exc


def _regex(pattern: str) -> str:
    """Return a glob as a regular expression; `*` and `?` stop at a slash, `**` does not."""
    regex = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token in _WILDCARDS:
            regex += _WILDCARDS[token]
        elif len(token) > 1:
            inner = token[1:-1].replace("\\", "\\\\")
            regex += f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        else:
            regex += re.escape(token)
    return regex


_WILDCARDS = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
