"""The workspace: the folder where a job's relative paths start, its providers, prices and rules (`rowmill.yaml`)."""

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import ConfigDict, Field, ValidationError, field_validator, model_validator

from connectors.contracts import FrozenModel, Provider
from connectors.errors import JobError, KeyPath, did_you_mean
from pipelines.config.base_urls import check_address, is_this_machine, unencrypted
from pipelines.config.key_locations import KeyLocations
from pipelines.config.validation_messages import Misfit, mistakes_of
from pipelines.config.yaml_reader import read_yaml
from pipelines.pricing.prices import PriceEntry

FILE_NAME = "rowmill.yaml"
LOCAL = "local"
"""The embedded provider: there in every workspace, always free."""
OPENAI_URL = "https://api.openai.com/v1"

Prices = dict[str, PriceEntry]


class Section(FrozenModel):
    """A part of the workspace file; a number in quotes is no number in it."""

    model_config = ConfigDict(strict=True)


class ProviderLimits(Section):
    """Limits of a provider's key, shared by all jobs; none but those named."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests a minute.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens a minute, both ways.", examples=[2_000_000]
    )
    concurrency: int | None = Field(default=None, ge=1, le=10_000, description="Requests in flight.", examples=[64])


class ProviderEntry(FrozenModel):
    """One provider, or a pool of them."""

    base_url: str | None = Field(default=None, description="Where its API begins.", examples=[OPENAI_URL])
    api_key_env: str | None = Field(
        default=None,
        description="The variable that holds the key; left out: no key is sent.",
        examples=["OPENAI_API_KEY"],
    )
    limits: ProviderLimits = Field(default=ProviderLimits(), description="Limits of its key.")
    prices: Prices = Field(default_factory=dict, description="By model; they go before the workspace's.")
    members: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A pool: the providers that share the work.",
        examples=[["openai", "gpu-box"]],
    )

    @model_validator(mode="after")
    def _one_or_a_pool(self) -> Self:
        if self.members is not None:
            beside = sorted(self.model_fields_set - {"members"})
            if beside:
                raise Misfit((beside[0],), "goes not with members; a pool takes it from each of its members")
        elif self.base_url is None:
            raise Misfit(("base_url",), f"missing; write e.g. base_url: {OPENAI_URL}")
        return self

    @field_validator("base_url")
    @classmethod
    def _is_address(cls, url: str | None) -> str | None:
        return None if url is None else check_address(url)

    @field_validator("api_key_env")
    @classmethod
    def _is_variable(cls, name: str | None) -> str | None:
        # What stands there may be the key itself: it is not repeated.
        if name is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > 80):
            raise ValueError("no name of a variable; set one to the key and write its name, e.g. OPENAI_API_KEY")
        return name


class DayBudget(Section):
    """What all jobs together may cost a day, in the workspace's time zone."""

    usd_per_day: float = Field(ge=0, le=10**6, allow_inf_nan=False, description="US dollars.", examples=[40.0])


class WorkspaceFile(FrozenModel):
    """What `rowmill.yaml` says."""

    providers: dict[str, ProviderEntry] = Field(default_factory=dict, description="By name.")
    state: str = Field(default=".rowmill", min_length=1, description="Folder of the ledger, locks and media.")
    roots: tuple[str, ...] = Field(
        default=(), description="Folders outside that row values and `sql:` may name.", examples=[["/mnt/media"]]
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="Private hosts that jobs may fetch from.", examples=[["media.internal"]]
    )
    budget: DayBudget | None = Field(default=None, description="Over all jobs.", examples=[{"usd_per_day": 40.0}])
    time_zone: str = Field(default="UTC", description="Of schedules, deadlines and days.", examples=["Europe/Berlin"])
    keep_answers: Literal["pruned", "committed"] = Field(
        default="pruned",
        description="pruned: until `ledger prune`; committed: dropped once their row is in the sink.",
        examples=["pruned"],
    )
    prices: Prices = Field(default_factory=dict, description="By model; they go before the built-in table.")

    @field_validator("time_zone")
    @classmethod
    def _is_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise ValueError(f'found "{name}", no time zone; write e.g. time_zone: Europe/Berlin') from exc
        return name

    @model_validator(mode="after")
    def _providers_fit(self) -> Self:
        for name, entry in self.providers.items():
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise Misfit(("providers", name), "no name; write letters, digits, _ . and - only")
            if name == LOCAL:
                raise Misfit(("providers", name), "is built in and takes no keys; choose another name")
            for index, member in enumerate(entry.members or ()):
                known = {other for other, its in self.providers.items() if its.members is None} | {LOCAL, "openai"}
                if member not in known:
                    raise Misfit(
                        ("providers", name, "members", index), f"no such provider; {did_you_mean(member, known)}"
                    )
        return self


@dataclass(frozen=True, slots=True)
class Workspace:
    """The workspace of a job; keys are looked up in the environment when a provider is asked for, and kept nowhere."""

    folder: Path
    """Absolute."""
    said: WorkspaceFile
    locations: KeyLocations = field(repr=False)
    has_file: bool

    @property
    def state(self) -> Path:
        """Absolute; perhaps not there yet."""
        return self.folder / self.said.state

    @property
    def roots(self) -> tuple[Path, ...]:
        return tuple(self.folder / root for root in self.said.roots)

    @property
    def hosts(self) -> tuple[str, ...]:
        return self.said.hosts

    @property
    def budget(self) -> DayBudget | None:
        return self.said.budget

    @property
    def zone(self) -> ZoneInfo:
        return ZoneInfo(self.said.time_zone)

    @property
    def keep_answers(self) -> Literal["pruned", "committed"]:
        return self.said.keep_answers

    @property
    def prices(self) -> Mapping[str, PriceEntry]:
        return self.said.prices

    @property
    def pools(self) -> Mapping[str, tuple[str, ...]]:
        """Name of a pool -> its members."""
        return {name: entry.members for name, entry in self.said.providers.items() if entry.members is not None}

    @property
    def provider_names(self) -> tuple[str, ...]:
        return tuple(sorted({*self.said.providers, "openai", LOCAL}))

    def warnings(self, asked: Iterable[str]) -> tuple[str, ...]:
        """What is allowed and yet perhaps not meant, one line each; `asked`: the providers that a job's steps name."""
        wide = "http without encryption to another machine"
        advice = "write https where the server offers it"
        found = [
            f"{self.locations.locate(('providers', name, 'base_url'))}: {wide}"
            f"{', the key goes with it' if entry.api_key_env else ''}; {advice}"
            for name, entry in self.said.providers.items()
            if entry.base_url is not None and unencrypted(entry.base_url)
        ]
        members = {member for name in asked for member in self.pools.get(name, (name,))}
        if "openai" in members and "openai" not in self.said.providers:
            url = os.environ.get("OPENAI_BASE_URL", "").strip()
            if unencrypted(url):
                found.append(f"OPENAI_BASE_URL: {wide}, the key goes with it; {advice}")
        return tuple(found)

    def provider(self, name: str, where: str | None = None) -> Provider:
        """The provider with its key; JobError, placed by `where`, if there is none or its variable is not set.

        `where` None: the workspace's own file. The base_url of `local` is empty: who starts it fills it in.
        """
        if name == LOCAL:
            return Provider(LOCAL, "", is_local=True)
        entry = self.said.providers.get(name)
        if entry is None and name == "openai":
            url = _from_environment(os.environ.get("OPENAI_BASE_URL", "").strip())
            return self._resolved(name, ProviderEntry(base_url=url, api_key_env="OPENAI_API_KEY"), where)
        if entry is None:
            known = did_you_mean(name, self.provider_names)
            raise JobError(where or self.locations.file, f"no provider {name}", f"{known}")
        if entry.members is not None:
            members = ", ".join(entry.members)
            raise JobError(where or self.locations.file, f"{name} is a pool", f"name one of its members: {members}")
        return self._resolved(name, entry, where)

    def members(self, name: str, where: str | None = None) -> tuple[Provider, ...]:
        """The providers of a pool, or the one that bears the name; JobError as for `provider`."""
        return tuple(self.provider(member, where) for member in self.pools.get(name, (name,)))

    def _resolved(self, name: str, entry: ProviderEntry, where: str | None) -> Provider:
        assert entry.base_url is not None
        return Provider(
            name,
            entry.base_url,
            self._key(name, entry.api_key_env, where),
            entry.limits.requests_per_minute,
            entry.limits.tokens_per_minute,
            entry.limits.concurrency,
            entry.prices,
            is_this_machine(entry.base_url),
        )

    def _key(self, name: str, variable: str | None, where: str | None) -> str | None:
        if variable is None:
            return None
        path: KeyPath = ("providers", name, "api_key_env")
        where = self.locations.locate(path) if name in self.said.providers else where or f"provider {name}"
        key = os.environ.get(variable, "").strip()
        if not key:
            raise JobError(where, f"the variable {variable} is not set", f"export {variable}=YOUR_KEY")
        if not key.isascii() or not key.isprintable() or " " in key:
            raise JobError(where, f"{variable} holds characters that no key has", "copy the key again")
        return key


def find_workspace(path: Path | str) -> Workspace:
    """The workspace of a job file, or of a folder: that of the nearest `rowmill.yaml` at or above, else the folder."""
    given = Path(path)
    # os.path never raises, whatever stands in a path.
    folder = given.absolute() if os.path.isdir(given) else given.absolute().parent  # noqa: PTH112
    home = next((above for above in (folder, *folder.parents) if os.path.isfile(above / FILE_NAME)), None)  # noqa: PTH113
    if home is None:
        return Workspace(folder, WorkspaceFile(), KeyLocations(FILE_NAME, {}, {}), has_file=False)
    file = home / FILE_NAME
    shown = str(file) if given.is_absolute() else os.path.relpath(file)
    read = read_yaml(file, shown)
    locations = KeyLocations(shown, read.lines, read.values)
    try:
        return Workspace(home, WorkspaceFile.model_validate(read.values), locations, has_file=True)
    except ValidationError as exc:
        found = mistakes_of(exc, read.values, _rules)
        first = min(found, key=lambda mistake: (mistake.missing, locations.line(mistake.path)))
        raise JobError(locations.locate(first.path), f"{first.what}") from exc


@cache
def _rules() -> dict[str, Any]:
    return WorkspaceFile.model_json_schema()


def _from_environment(url: str) -> str:
    """OPENAI_BASE_URL, where it is set."""
    try:
        return check_address(url) if url else OPENAI_URL
    except ValueError as exc:
        raise JobError("OPENAI_BASE_URL", f"{exc}") from exc


def as_one(name: str, members: Sequence[Provider]) -> Provider:
    """The provider that stands for the pool; its name, not its members', is part of a request's fingerprint."""
    return replace(
        members[0],
        name=name,
        api_key=None,
        requests_per_minute=_together([member.requests_per_minute for member in members]),
        tokens_per_minute=_together([member.tokens_per_minute for member in members]),
        concurrency=_together([member.concurrency for member in members]),
        prices={},
        is_local=all(member.is_local for member in members),
    )


def _together(limits: Sequence[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
