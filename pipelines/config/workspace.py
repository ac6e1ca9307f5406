"""The workspace: the folder where a job's relative paths start, with its providers, prices and rules."""

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from pydantic import ValidationError

from connectors.contracts import Provider
from connectors.errors import FieldError, JobError, did_you_mean
from pipelines.config.base_urls import checked_base_url, is_loopback, is_unencrypted
from pipelines.config.key_locations import KeyLocations
from pipelines.config.validation_messages import first_error, validation_errors
from pipelines.config.workspace_file import (
    FILE_NAME,
    LOCAL,
    OPENAI,
    OPENAI_URL,
    ProviderEntry,
    WorkspaceBudget,
    WorkspaceFile,
)
from pipelines.config.yaml_reader import read_yaml
from pipelines.pricing.prices import PriceEntry


@dataclass(frozen=True, slots=True)
class Workspace:
    """The workspace of a job; a provider's key is read from the environment on demand and not stored."""

    folder: Path
    """Absolute."""
    settings: WorkspaceFile
    locations: KeyLocations = field(repr=False)
    has_file: bool

    @property
    def state(self) -> Path:
        """The folder of the ledger, locks and media: absolute; it may not exist yet."""
        return self.folder / self.settings.state

    @property
    def roots(self) -> tuple[Path, ...]:
        """Folders outside the workspace that jobs may read."""
        return tuple(self.folder / root for root in self.settings.roots)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Private hosts that jobs may fetch from."""
        return self.settings.hosts

    @property
    def budget(self) -> WorkspaceBudget | None:
        """What all jobs together may cost a day."""
        return self.settings.budget

    @property
    def zone(self) -> ZoneInfo:
        """The time zone of schedules, deadlines and days."""
        return ZoneInfo(self.settings.time_zone)

    @property
    def keep_answers(self) -> Literal["pruned", "committed"]:
        """How long the ledger stores answers."""
        return self.settings.keep_answers

    @property
    def prices(self) -> Mapping[str, PriceEntry]:
        """By model name; they override the built-in table."""
        return self.settings.prices

    @property
    def pools(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a pool -> its members."""
        return {name: entry.members for name, entry in self.settings.providers.items() if entry.members is not None}

    @property
    def provider_names(self) -> tuple[str, ...]:
        """All providers and pools, sorted."""
        return tuple(sorted({*self.settings.providers, OPENAI, LOCAL}))

    def warnings(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return a line for each setting that is allowed but risky; `names`: the providers in a job's steps."""
        finding = "http without encryption to another machine"
        remedy = "write https where the server offers it"
        found = [
            f"{self.locations.locate(('providers', name, 'base_url'))}: {finding}"
            f"{', the key goes with it' if entry.api_key_env else ''}; {remedy}"
            for name, entry in self.settings.providers.items()
            if entry.base_url is not None and is_unencrypted(entry.base_url)
        ]
        members = {member for name in names for member in self.pools.get(name, (name,))}
        if OPENAI in members and OPENAI not in self.settings.providers and is_unencrypted(_openai_base_url()):
            found.append(f"OPENAI_BASE_URL: {finding}, the key goes with it; {remedy}")
        return tuple(found)

    def provider(self, name: str, where: str | None = None) -> Provider:
        """Return the provider with its key; JobError at `where` if it does not exist or its variable is not set.

        `where` None: the workspace's own file. The base_url of `local` is empty until the embedded server is started.
        """
        if name == LOCAL:
            return Provider(LOCAL, "", is_local=True)
        entry = self.settings.providers.get(name)
        if entry is None and name == OPENAI:
            try:
                url = checked_base_url(_openai_base_url() or OPENAI_URL)
            except FieldError as exc:
                raise JobError("OPENAI_BASE_URL", exc.found, exc.remedy) from exc
            entry = ProviderEntry(base_url=url, api_key_env="OPENAI_API_KEY")
        if entry is None:
            raise JobError(where or self.locations.file, f"no provider {name}", did_you_mean(name, self.provider_names))
        if entry.base_url is None:
            members = ", ".join(entry.members or ())
            raise JobError(where or self.locations.file, f"{name} is a pool", f"name one of its members: {members}")
        return Provider(
            name,
            entry.base_url,
            self._key(name, entry.api_key_env, where),
            entry.limits.requests_per_minute,
            entry.limits.tokens_per_minute,
            entry.limits.concurrency,
            entry.prices,
            is_loopback(entry.base_url),
        )

    def members(self, name: str, where: str | None = None) -> tuple[Provider, ...]:
        """Return the providers of a pool, or the one with this name; JobError as for `provider`."""
        return tuple(self.provider(member, where) for member in self.pools.get(name, (name,)))

    def _key(self, name: str, variable: str | None, where: str | None) -> str | None:
        if variable is None:
            return None
        if name in self.settings.providers:
            where = self.locations.locate(("providers", name, "api_key_env"))
        key = os.environ.get(variable, "").strip()
        if not key:
            raise JobError(
                where or f"provider {name}", f"the variable {variable} is not set", f"export {variable}=YOUR_KEY"
            )
        if not key.isascii() or not key.isprintable() or " " in key:
            found = f"{variable} holds characters that no key has"
            raise JobError(where or f"provider {name}", found, "copy the key again")
        return key


def find_workspace(path: Path | str) -> Workspace:
    """Return the workspace of a job file or folder: the nearest folder at or above it with a `rowmill.yaml`.

    Without such a file, the job file's folder is the workspace.
    """
    given = Path(path)
    # os.path never raises, whatever characters a path has.
    folder = given.absolute() if os.path.isdir(given) else given.absolute().parent  # noqa: PTH112
    home = next((above for above in (folder, *folder.parents) if os.path.isfile(above / FILE_NAME)), None)  # noqa: PTH113
    if home is None:
        return Workspace(folder, WorkspaceFile(), KeyLocations(FILE_NAME, {}, {}), has_file=False)
    file = home / FILE_NAME
    shown = str(file) if given.is_absolute() else os.path.relpath(file)
    content = read_yaml(file, shown)
    locations = KeyLocations(shown, content.lines, content.values)
    try:
        return Workspace(home, WorkspaceFile.model_validate(content.values), locations, has_file=True)
    except ValidationError as exc:
        raise first_error(validation_errors(exc, content.values, _workspace_schema), locations) from exc


def combined_provider(name: str, members: Sequence[Provider]) -> Provider:
    """Return the provider that represents a pool; its name is part of a request's fingerprint, its members' are not."""
    return replace(
        members[0],
        name=name,
        api_key=None,
        requests_per_minute=_sum_of_limits([member.requests_per_minute for member in members]),
        tokens_per_minute=_sum_of_limits([member.tokens_per_minute for member in members]),
        concurrency=_sum_of_limits([member.concurrency for member in members]),
        prices={},
        is_local=all(member.is_local for member in members),
    )


@cache
def _workspace_schema() -> dict[str, Any]:
    return WorkspaceFile.model_json_schema()


def _openai_base_url() -> str:
    return os.environ.get("OPENAI_BASE_URL", "").strip()


def _sum_of_limits(limits: Sequence[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
