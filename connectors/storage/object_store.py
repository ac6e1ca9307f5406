"""Objects at `s3://`, `gs://` and `az://`: read in ranges, put whole; credentials from the environment alone."""

import contextlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path
from typing import Any

from connectors.errors import DataError, JobError, KeyPath

SCHEMES = ("s3", "gs", "az")
VARIABLES = {
    "s3": "AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, AWS_REGION and AWS_ENDPOINT_URL",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
}
"""What a message names; https://developmentseed.org/obstore lists all of them."""
RETRIES = 6
RETRY_SECONDS = 60
"""A request that gets no answer is tried again for so long, at most."""
COPY_BYTES = 8 << 20


@dataclass(frozen=True, slots=True)
class Object:
    """An object that is there."""

    url: str
    size: int
    modified: datetime

    @property
    def name(self) -> str:
        """What stands behind the last slash."""
        return self.url.rpartition("/")[2]


def is_url(path: str) -> bool:
    """Whether a path of a job file is an object store's; JobError for a scheme that is not known."""
    scheme, there, _ = path.partition("://")
    if not there:
        return False
    if scheme not in SCHEMES:
        known = ", ".join(f"{one}://" for one in SCHEMES)
        raise JobError(path, f"{scheme}:// is not known", f"write the path of a file or folder, or one of {known}")
    return True


def normal(url: str) -> str:
    """One text for one place: no slash at the end, none twice."""
    scheme, _, rest = url.partition("://")
    parts = [part for part in rest.split("/") if part not in ("", ".")]
    if not parts or ".." in parts:
        raise JobError(url, "names no bucket, or has .. in it", f"write e.g. {scheme}://bucket/folder")
    return f"{scheme}://{'/'.join(parts)}"


def check_installed(where: KeyPath) -> None:
    """JobError where the package that speaks to object stores is missing."""
    try:
        import fsspec  # noqa: F401
        import obstore  # noqa: F401
    except ImportError as exc:
        raise JobError(
            where, "object stores need the packages obstore and fsspec", "pip install 'rowmill[cloud]'"
        ) from exc


def plain_http() -> bool:
    """Whether the environment names an S3 endpoint without TLS, as a local server has."""
    return os.environ.get("AWS_ENDPOINT_URL", os.environ.get("AWS_ENDPOINT", "")).startswith("http://")


def objects_at(pattern: str, suffixes: Sequence[str]) -> list[Object]:
    """The object of this URL; or those below it that end in one of the suffixes, but for names that begin with a dot or
    an underscore; or those that a glob (`*`, `**`, `?`, `[ab]`) names. Sorted by URL."""
    url = normal(pattern)
    single = head(url)
    if single is not None:
        return [single]
    below = [one for one in listed(url) if one.name.endswith(tuple(suffixes))]
    if below:
        hidden = re.compile(r"(^|/)[._]")
        return [one for one in below if not hidden.search(one.url[len(url) + 1 :])]
    plain = re.split(r"[*?\[]", url, maxsplit=1)[0]
    if plain == url:
        return []
    wanted = re.compile(_regex(url), re.DOTALL)
    return [one for one in listed(plain.rpartition("/")[0]) if wanted.fullmatch(one.url)]


def head(url: str) -> Object | None:
    """The object, if it is there."""
    store, key = _place(url)
    if not key:
        return None
    with _told(url):
        try:
            meta = store.head(key)
            return Object(url, int(meta["size"]), meta["last_modified"])
        except FileNotFoundError:
            return None


def listed(url: str) -> list[Object]:
    """Every object below the URL, sorted."""
    store, key = _place(url)
    bucket = url[: len(url) - len(key)].rstrip("/")
    with _told(url):
        found = [
            Object(f"{bucket}/{meta['path']}", int(meta["size"]), meta["last_modified"])
            for page in store.list(f"{key}/" if key else None)
            for meta in page
        ]
    return sorted(found, key=lambda one: one.url)


def read_range(url: str, start: int, length: int) -> bytes:
    """A piece of an object."""
    store, key = _place(url)
    with _told(url):
        return bytes(store.get_range(key, start=start, length=length)) if length else b""


def read(url: str) -> bytes | None:
    """An object's content; None where it is not there."""
    store, key = _place(url)
    with _told(url):
        try:
            return bytes(store.get(key).bytes())
        except FileNotFoundError:
            return None


def fetch(url: str, target: Path) -> None:
    """An object's content into a file, a few megabytes at a time."""
    store, key = _place(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        with _told(url):
            pieces = iter(store.get(key).stream(min_chunk_size=COPY_BYTES))
        while True:
            with _told(url):
                piece = next(pieces, None)
            if piece is None:
                return
            out.write(piece)


def put(url: str, content: Path | bytes) -> None:
    """The object, in place of one that is there: readers see the old or the new, whole."""
    store, key = _place(url)
    with _told(url):
        store.put(key, content)


def copy(url: str, target: str) -> None:
    """An object of the same bucket, copied by the store itself."""
    store, key = _place(url)
    with _told(url):
        store.copy(key, _place(target)[1])


def delete(urls: Sequence[str]) -> None:
    """Objects of one bucket, away; one that is not there is none to delete."""
    if urls:
        store = _place(urls[0])[0]
        with _told(urls[0]), contextlib.suppress(FileNotFoundError):
            store.delete([_place(url)[1] for url in urls])


def _place(url: str) -> tuple[Any, str]:
    """(the bucket's store, the object's key)."""
    scheme, _, rest = url.partition("://")
    bucket, _, key = rest.partition("/")
    return _store(f"{scheme}://{bucket}", os.environ.get("AWS_ENDPOINT_URL")), key


@lru_cache(maxsize=64)
def _store(bucket: str, endpoint: str | None) -> Any:
    from obstore.store import from_url

    with _told(bucket):
        return from_url(
            bucket,
            client_options={"allow_http": plain_http()},
            retry_config={"max_retries": RETRIES, "retry_timeout": timedelta(seconds=RETRY_SECONDS)},
        )


@contextlib.contextmanager
def _told(url: str) -> Iterator[None]:
    """The store's errors as ours."""
    from obstore.exceptions import BaseError

    try:
        yield
    except (BaseError, FileNotFoundError) as exc:
        said = " ".join(str(exc).split("Debug source:")[0].split())
        variables = VARIABLES[url.partition("://")[0]]
        raise DataError(
            url, f"{said[:300].rstrip('. ')}", f"check the URL, and {variables} in the environment"
        ) from exc


def _regex(pattern: str) -> str:
    """A glob as a regular expression; `*` and `?` stop at a slash, `**` does not."""
    found = ""
    for token in re.findall(r"\*\*/|\*\*|\*|\?|\[!?\]?[^\]]*\]|.", pattern, re.DOTALL):
        if token in _WILD:
            found += _WILD[token]
        elif len(token) > 1:
            inner = token[1:-1].replace("\\", "\\\\")
            found += f"[^{inner[1:]}]" if inner.startswith("!") else f"[{inner}]"
        else:
            found += re.escape(token)
    return found


_WILD = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
