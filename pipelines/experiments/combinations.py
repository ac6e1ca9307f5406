"""The combinations of an experiment: every value of each `--over` with every value of the others."""

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import orjson
from msgspec import Struct

from connectors.errors import JobError
from pipelines.config.included_files.text_file import read_text_file
from pipelines.config.yaml_reader import parse_value

MAX_COMBINATIONS = 1_000
"""More combinations than this are a mistake: their cost grows with the product of the values."""


class Setting(Struct, frozen=True):
    """One value of one key of the job."""

    key: str
    """As `--set` takes it: `steps.label.model`."""
    value: Any
    file: str | None = None
    """The file that `value` is the text of, as the user named it."""

    @property
    def label(self) -> Any:
        """The value as a reader recognizes it: the name of the file in place of its text."""
        return self.value if self.file is None else f"@{self.file}"

    @property
    def assignment(self) -> str:
        """The setting as `--set` takes it."""
        return f"{self.key}={orjson.dumps(self.value).decode()}"


class Combination(Struct, frozen=True):
    """One setting for each key of the experiment."""

    number: int
    """From 1."""
    settings: tuple[Setting, ...]

    @property
    def labels(self) -> dict[str, Any]:
        """Key -> value, with the names of files in place of their texts."""
        return {setting.key: setting.label for setting in self.settings}


def parse_combinations(over: Sequence[str], folder: Path) -> tuple[Combination, ...]:
    """Return the combinations that the `--over` flags describe, the last key varying fastest.

    A flag is `KEY=VALUE,VALUE`, `KEY=[VALUE, VALUE]` in YAML, or `KEY=@GLOB`, each file a text; flags with the same key
    add up. `folder`: where relative globs start. JobError for a flag that cannot be read.
    """
    values: dict[str, list[Setting]] = {}
    for flag in over:
        key, equals, text = flag.partition("=")
        key = key.strip()
        if not equals or not all(key.split(".")) or not text.strip():
            raise JobError(
                f"--over {flag}", "no key with values", "write e.g. --over steps.label.model=gpt-4o,gpt-4o-mini"
            )
        settings = values.setdefault(key, [])
        for setting in _settings(key, text.strip(), folder):
            if setting not in settings:
                settings.append(setting)
    if not values:
        raise JobError("--over", "missing", "write e.g. --over steps.label.model=gpt-4o,gpt-4o-mini")
    product = list(itertools.islice(itertools.product(*values.values()), MAX_COMBINATIONS + 1))
    if len(product) > MAX_COMBINATIONS:
        raise JobError("--over", f"makes more than {MAX_COMBINATIONS:,} combinations", "vary fewer keys at a time")
    return tuple(Combination(number, settings) for number, settings in enumerate(product, start=1))


def _settings(key: str, text: str, folder: Path) -> Iterator[Setting]:
    where = f"--over {key}"
    if text.startswith("@"):
        yield from _file_settings(key, text[1:].strip(), folder)
        return
    if text.startswith(("[", "{", '"', "'")):
        # A mapping or a quoted text is one value, whatever commas it has.
        values = parse_value(text if text.startswith("[") else f"[{text}]", where)
        if not isinstance(values, list) or not values:
            raise JobError(where, f"found {text}, expected a list of values", "write e.g. [0, 0.5]")
        yield from (Setting(key, value) for value in values)
        return
    for part in text.split(","):
        yield Setting(key, parse_value(part.strip(), where))


def _file_settings(key: str, pattern: str, folder: Path) -> Iterator[Setting]:
    where = f"--over {key}=@{pattern}"
    path = folder / pattern
    # A file name is a name first, even if it has characters of a pattern.
    files = [path] if path.is_file() else [file for file in sorted(_matches(folder, pattern)) if file.is_file()]
    if not files:
        raise JobError(where, "no such file", "a relative path starts in the current folder")
    for file in files:
        name = str(file.relative_to(folder) if file.is_relative_to(folder) else file)
        yield Setting(key, read_text_file(file, f"{where}: {name}"), name)


def _matches(folder: Path, pattern: str) -> Iterator[Path]:
    path = Path(pattern)
    return Path(path.anchor).glob(str(path.relative_to(path.anchor))) if path.is_absolute() else folder.glob(pattern)
