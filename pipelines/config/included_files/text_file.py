"""Text files of a workspace: UTF-8, with the line ends of any system."""

from pathlib import Path

from connectors.errors import JobError

MAX_FILE_BYTES = 1_000_000


def read_text_file(path: Path, shown: str, too_large: str = "split it, or make it shorter") -> str:
    """Return the text of a file, without a byte order mark; JobError, located by `shown`, if it cannot be read.

    Line ends become line feeds: a checkout on Windows has the same text. `too_large`: what to do about such a file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as exc:
        raise JobError(shown, "no such file", "check the path") from exc
    except IsADirectoryError as exc:
        raise JobError(shown, "is a folder", "name a file in it") from exc
    except (OSError, ValueError) as exc:
        reason = exc.strerror if isinstance(exc, OSError) and exc.strerror else str(exc)
        raise JobError(shown, f"cannot be read ({reason})", "check the path and its permissions") from exc
    if len(data) > MAX_FILE_BYTES:
        raise JobError(shown, "larger than 1 MB", too_large)
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise JobError(f"{shown}:{line}", "not UTF-8 text", "save the file as UTF-8") from exc
    return text.replace("\r\n", "\n").replace("\r", "\n")
