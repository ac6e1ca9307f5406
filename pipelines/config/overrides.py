"""Flags of the command line that replace values of a job file for one run."""

import copy
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connectors.errors import JobError, KeyPath, did_you_mean
from pipelines.config.yaml_reader import parse_value


@dataclass(frozen=True, slots=True)
class Overrides:
    """What `rowmill run` was told besides the job file; None where a flag was not given."""

    assignments: tuple[str, ...] = ()
    """Of `--set`: `steps.label.model=gpt-4o`, in the order given."""
    limit: int | None = None
    provider: str | None = None
    sink: str | None = None
    """A path from the folder in which the command was given, as in every shell."""
    budget_usd: float | None = None
    delivery: str | None = None

    def __post_init__(self) -> None:
        if isinstance(self.assignments, str):
            raise TypeError("assignments is a tuple of texts")

    def flags(self) -> list[str]:
        """As the command line takes them."""
        said = (
            ("--limit", self.limit),
            ("--provider", self.provider),
            ("--sink", self.sink),
            ("--budget-usd", self.budget_usd),
            ("--delivery", self.delivery),
        )
        named = [f"{flag}={value}" for flag, value in said if value is not None]
        return [*(f"--set={assignment}" for assignment in self.assignments), *named]


NONE = Overrides()


@dataclass(frozen=True, slots=True)
class Applied:
    """A job file's values with the flags' in place, and which key path came from which flag."""

    raw: dict[str, Any]
    flags: Mapping[KeyPath, str]


def applied(raw: Mapping[str, Any], overrides: Overrides, sink_kinds: Collection[str]) -> Applied:
    """The values that the job is made of. Named flags go over `--set`; nothing is validated here."""
    values: dict[str, Any] = copy.deepcopy(dict(raw))
    flags: dict[KeyPath, str] = {}
    for assignment in overrides.assignments:
        path, value, flag = _assignment(assignment, values)
        _put(values, path, value, flag)
        flags[path] = flag
    for path, value, flag in _named(values, overrides, sink_kinds):
        _put(values, path, value, flag)
        flags[path] = flag
    if overrides.delivery == "online":
        values.pop("deadline", None)  # It belongs to the batch that is not asked for.
    return Applied(values, flags)


def answer_flags(overrides: Overrides) -> tuple[str, ...]:
    """The flags that may change an answer: they need a sink of their own."""
    tops = ("source", "steps", "name")
    found = [
        f"--set {key}"
        for key in (assignment.partition("=")[0].strip() for assignment in overrides.assignments)
        if key.split(".")[0] in tops and key != "source.limit"
    ]
    return (*found, "--provider") if overrides.provider is not None else tuple(found)


def gives_sink(overrides: Overrides, sink_kinds: Collection[str]) -> bool:
    """Whether the run writes elsewhere than the job file says."""
    keys = {assignment.partition("=")[0].strip() for assignment in overrides.assignments}
    return overrides.sink is not None or not keys.isdisjoint({"sink.table", *(f"sink.{kind}" for kind in sink_kinds)})


def _named(
    values: Mapping[str, Any], overrides: Overrides, sink_kinds: Collection[str]
) -> list[tuple[KeyPath, Any, str]]:
    found: list[tuple[KeyPath, Any, str]] = []
    if overrides.limit is not None and isinstance(values.get("source"), dict):
        found.append((("source", "limit"), overrides.limit, "--limit"))
    steps = values.get("steps")
    if overrides.provider is not None and isinstance(steps, list):
        found += [
            (("steps", index, "provider"), overrides.provider, "--provider")
            for index, step in enumerate(steps)
            if isinstance(step, dict)
        ]
    sink = values.get("sink")
    if overrides.sink is not None and isinstance(sink, dict):
        kind = next((kind for kind in sink_kinds if kind in sink), None)
        if kind is not None:
            # A URL of an object store is no path of this machine.
            target = overrides.sink if "://" in overrides.sink else str(Path(overrides.sink).absolute())
            found.append((("sink", kind), target, "--sink"))
    if overrides.budget_usd is not None:
        found.append((("budget", "usd"), overrides.budget_usd, "--budget-usd"))
    if overrides.delivery is not None:
        found.append((("delivery",), overrides.delivery, "--delivery"))
    return found


def _assignment(text: str, values: Mapping[str, Any]) -> tuple[KeyPath, Any, str]:
    """The key path, the value and the flag as messages name it."""
    key, equals, value = text.partition("=")
    key = key.strip()
    flag = f"--set {key}".rstrip()
    if not equals or not all(key.split(".")):
        raise JobError(f"--set {text}", "no key with a value", "write e.g. --set steps.label.model=gpt-4o")
    return _path(key.split("."), values, flag), parse_value(value, flag), flag


def _path(words: list[str], values: Mapping[str, Any], flag: str) -> KeyPath:
    """Names of steps and numbers in lists become indexes."""
    path: list[str | int] = []
    here: Any = values
    for word in words:
        part: str | int = word
        if isinstance(here, list):
            part = _index(word, here, path, flag)
            here = here[part]
        elif isinstance(here, dict):
            here = here.get(word, {})
        else:
            dotted = ".".join(map(str, path))
            raise JobError(flag, f"{dotted} holds a single value", f"set {dotted} itself")
        path.append(part)
    return tuple(path)


def _index(word: str, entries: list[Any], path: list[str | int], flag: str) -> int:
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(entries):
        return int(word)
    if path == ["steps"]:
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
        if word in names:
            return names.index(word)
        raise JobError(flag, "no such step", f"{did_you_mean(word, [name for name in names if isinstance(name, str)])}")
    dotted = ".".join(map(str, path))
    count = f"0 to {len(entries) - 1}" if entries else "nothing: it is empty"
    raise JobError(flag, f"{word} is no place in the list {dotted}", f"it holds {count}")


def _put(values: Any, path: KeyPath, value: Any, flag: str) -> None:
    """Set the value; sections that the file leaves out are made."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, dict) and (part not in values or values[part] is None):
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict | list):
            dotted = ".".join(map(str, path[: depth + 1]))
            raise JobError(flag, f"{dotted} holds a single value", "mend the job file")
    values[path[-1]] = value
