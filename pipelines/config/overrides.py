"""Flags of the command line that replace values of a job file for one run."""

import copy
import os
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from msgspec import Struct

from connectors.errors import JobError, KeyPath, did_you_mean, dotted
from pipelines.config.yaml_reader import parse_value

_ANSWER_SECTIONS = ("source", "steps", "name")
"""Sections that determine the answers and whose they are."""

SENDING_KEYS = frozenset({"pack", "repairs"})
"""Keys of a step that change how rows are requested from now on, and no answer."""


class Overrides(Struct, frozen=True):
    """The flags of a command; None for a flag that was not given."""

    assignments: tuple[str, ...] = ()
    """Of `--set`: `steps.label.model=gpt-4o`, in the order given."""
    limit: int | None = None
    provider: str | None = None
    sink: str | None = None
    """A path relative to the current folder, as in a shell."""
    budget_usd: float | None = None
    delivery: str | None = None
    over: tuple[str, ...] = ()
    """Of a trial run, in the form of `assignments`, which they replace: one value of each `--over`."""

    def __post_init__(self) -> None:
        if isinstance(self.assignments, str) or isinstance(self.over, str):
            raise TypeError("assignments is a tuple of texts")

    @property
    def assigned(self) -> tuple[tuple[str, str], ...]:
        """(flag, assignment), in the order in which they apply."""
        given = (("--set", self.assignments), ("--over", self.over))
        return tuple((flag, assignment) for flag, assignments in given for assignment in assignments)

    def flags(self) -> list[str]:
        """Return the flags as command-line arguments."""
        values = {
            "--limit": self.limit,
            "--provider": self.provider,
            "--sink": self.sink,
            "--budget-usd": self.budget_usd,
            "--delivery": self.delivery,
        }
        named = [f"{flag}={value}" for flag, value in values.items() if value is not None]
        return [*(f"{flag}={assignment}" for flag, assignment in self.assigned), *named]


NONE = Overrides()


class OverriddenValues(Struct, frozen=True):
    """A job file's values with the flags applied, and which key path came from which flag."""

    values: dict[str, Any]
    flags: Mapping[KeyPath, str]


def apply_overrides(written: Mapping[str, Any], overrides: Overrides, sink_kinds: Collection[str]) -> OverriddenValues:
    """Return a copy of the values with the flags applied, named flags after `--set`; nothing is validated here."""
    values: dict[str, Any] = copy.deepcopy(dict(written))
    flags: dict[KeyPath, str] = {}
    for name, assignment in overrides.assigned:
        path, value, flag = _parse_assignment(name, assignment, values)
        _set_value(values, path, value, flag)
        flags[path] = flag
    for path, value, flag in list(_named_flags(values, overrides, sink_kinds)):
        _set_value(values, path, value, flag)
        flags[path] = flag
    if overrides.delivery == "online":
        values.pop("deadline", None)  # It belongs to the batch that the flag replaces.
    return OverriddenValues(values, flags)


def answer_flags(overrides: Overrides) -> tuple[str, ...]:
    """Return the flags that may change answers, which then need a separate sink."""
    flags = [
        f"{flag} {key}"
        for flag, key in _assigned_keys(overrides)
        if (parts := key.split("."))[0] in _ANSWER_SECTIONS
        and key != "source.limit"
        and not (parts[0] == "steps" and SENDING_KEYS.intersection(parts[2:3]))
    ]
    return (*flags, "--provider") if overrides.provider is not None else tuple(flags)


def has_other_sink(overrides: Overrides, sink_kinds: Collection[str]) -> bool:
    """Return whether the flags name a sink."""
    sink_keys = {"sink.table", *(f"sink.{kind}" for kind in sink_kinds)}
    return overrides.sink is not None or not sink_keys.isdisjoint(key for _, key in _assigned_keys(overrides))


def trial_sink(path: str, workspace: Path) -> str:
    """Return a value of `--sink` next to the sink at `path`, of the same kind: `out/x-try`, `out/x-try.duckdb`.

    It is relative to the current folder, as in a shell.
    """
    if "://" in path:
        return f"{path.rstrip('/')}-try"
    place = Path(os.path.relpath(workspace / path))
    return str(place.with_name(f"{place.stem}-try{place.suffix}"))


def _assigned_keys(overrides: Overrides) -> list[tuple[str, str]]:
    return [(flag, assignment.partition("=")[0].strip()) for flag, assignment in overrides.assigned]


def _named_flags(
    values: Mapping[str, Any], overrides: Overrides, sink_kinds: Collection[str]
) -> Iterator[tuple[KeyPath, Any, str]]:
    if overrides.limit is not None and isinstance(values.get("source"), dict):
        yield ("source", "limit"), overrides.limit, "--limit"
    steps = values.get("steps")
    if overrides.provider is not None and isinstance(steps, list):
        # The commands import this module for their help, which needs no models.
        from pipelines.config.steps.local_steps import LOCAL_STEPS

        for index, step in enumerate(steps):
            if isinstance(step, dict) and LOCAL_STEPS.keys().isdisjoint(step):
                yield ("steps", index, "provider"), overrides.provider, "--provider"
                rungs = step.get("rescue")
                for place, rung in enumerate(rungs if isinstance(rungs, list) else ()):
                    if isinstance(rung, dict) and "provider" in rung:
                        yield ("steps", index, "rescue", place, "provider"), overrides.provider, "--provider"
    sink = values.get("sink")
    if overrides.sink is not None and isinstance(sink, dict):
        kind = next((kind for kind in sink_kinds if kind in sink), None)
        if kind is not None:
            # The URL of an object store is not a path of this machine.
            target = overrides.sink if "://" in overrides.sink else str(Path(overrides.sink).absolute())
            yield ("sink", kind), target, "--sink"
    if overrides.budget_usd is not None:
        yield ("budget", "usd"), overrides.budget_usd, "--budget-usd"
    if overrides.delivery is not None:
        yield ("delivery",), overrides.delivery, "--delivery"


def _parse_assignment(name: str, text: str, values: Mapping[str, Any]) -> tuple[KeyPath, Any, str]:
    """Return the key path, the value, and the flag as messages name it; `name`: `--set` or `--over`."""
    key, equals, value = text.partition("=")
    key = key.strip()
    flag = f"{name} {key}".rstrip()
    if not equals or not all(key.split(".")):
        raise JobError(f"{name} {text}", "no key with a value", f"write e.g. {name} steps.label.model=gpt-4o")
    return _key_path(key.split("."), values, flag), parse_value(value, flag), flag


def _key_path(words: list[str], values: Mapping[str, Any], flag: str) -> KeyPath:
    """Return the key path: names of steps and numbers in lists become indexes."""
    path: list[str | int] = []
    here: Any = values
    for word in words:
        part: str | int = word
        if isinstance(here, list):
            part = _index(word, here, tuple(path), flag)
            here = here[part]
        elif isinstance(here, dict):
            here = here.get(word, {})
        else:
            key = dotted(tuple(path))
            raise JobError(flag, f"{key} is a single value", f"set {key} itself")
        path.append(part)
    return tuple(path)


def _index(word: str, entries: list[Any], path: KeyPath, flag: str) -> int:
    if word.isascii() and word.isdigit() and len(word) < 10 and int(word) < len(entries):
        return int(word)
    if path == ("steps",):
        names = [entry.get("name") if isinstance(entry, dict) else None for entry in entries]
        if word in names:
            return names.index(word)
        known = [name for name in names if isinstance(name, str)]
        raise JobError(flag, "no such step", did_you_mean(word, known))
    indexes = f"write 0 to {len(entries) - 1}" if entries else "it is empty"
    raise JobError(flag, f"{word} is not an index of the list {dotted(path)}", indexes)


def _set_value(values: Any, path: KeyPath, value: Any, flag: str) -> None:
    """Set the value, adding the sections that the file leaves out."""
    for depth, part in enumerate(path[:-1]):
        if isinstance(values, dict) and (part not in values or values[part] is None):
            values[part] = {}
        values = values[part]
        if not isinstance(values, dict | list):
            raise JobError(flag, f"{dotted(path[: depth + 1])} is a single value", "fix the job file")
    values[path[-1]] = value
