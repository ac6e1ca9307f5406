"""The models of `rowmill.yaml`: providers, limits, prices, budget and rules of a workspace."""

import re
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from connectors.contracts import FrozenModel
from connectors.errors import FieldError, did_you_mean
from pipelines.config.providers.provider_entry import PriceTable, ProviderEntry
from pipelines.config.strict_model import StrictModel

FILE_NAME = "rowmill.yaml"
LOCAL = "local"
"""The embedded provider: available in every workspace, always free."""
OPENAI = "openai"
"""Available in every workspace; its key is in OPENAI_API_KEY unless the file says otherwise."""


class WorkspaceBudget(StrictModel):
    """What all jobs together may cost a day, in the workspace's time zone."""

    usd_per_day: float = Field(ge=0, le=10**6, allow_inf_nan=False, description="US dollars.", examples=[40.0])


class LedgerSettings(StrictModel):
    """How the ledger is written."""

    durability: Literal["process", "power"] = Field(
        default="process",
        description="process: survives any death of the process; power: also syncs each commit to the disk.",
        examples=["power"],
    )


class WorkspaceFile(FrozenModel):
    """The contents of `rowmill.yaml`."""

    providers: dict[str, ProviderEntry] = Field(default_factory=dict, description="The providers, by name.")
    state: str = Field(default=".rowmill", min_length=1, description="Folder of the ledger, locks and media.")
    env_file: str | Literal[False] | None = Field(
        default=None,
        description="File with values of variables that are not set; default: `.env` if it exists; false: none.",
        examples=["secrets.env"],
    )
    roots: tuple[str, ...] = Field(
        default=(),
        description="Folders outside the workspace that row values and `sql:` may name.",
        examples=[["/mnt/media"]],
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="Private hosts that jobs may fetch from.", examples=[["media.internal"]]
    )
    budget: WorkspaceBudget | None = Field(
        default=None, description="What all jobs together may cost.", examples=[{"usd_per_day": 40.0}]
    )
    time_zone: str = Field(
        default="UTC", description="Time zone of schedules, deadlines and days.", examples=["Europe/Berlin"]
    )
    ledger: LedgerSettings = Field(
        default=LedgerSettings(), description="How durable the ledger is.", examples=[{"durability": "power"}]
    )
    keep_answers: Literal["pruned", "committed"] = Field(
        default="pruned",
        description="pruned: until `ledger prune`; committed: dropped once their row is in the sink, except with "
        "`write: replace`.",
        examples=["pruned"],
    )
    prices: PriceTable = Field(default_factory=dict, description="By model; they override the built-in table.")

    @field_validator("hosts")
    @classmethod
    def _check_hosts(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        for host in hosts:
            if "/" in host:
                raise FieldError(f'found "{host}", not the name of a host', "write e.g. hosts: [media.internal]")
        return hosts

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise FieldError(f'found "{name}", not a time zone', "write e.g. time_zone: Europe/Berlin") from exc
        return name

    @field_validator("env_file")
    @classmethod
    def _check_env_file(cls, path: str | Literal[False] | None) -> str | Literal[False] | None:
        if path == "":
            raise FieldError("names no file", "write its path, or false")
        return path

    @model_validator(mode="after")
    def _check_providers(self) -> Self:
        single = {name for name, entry in self.providers.items() if entry.members is None} | {LOCAL, OPENAI}
        for name, entry in self.providers.items():
            path = ("providers", name)
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", name):
                raise FieldError("not a name", "write letters, digits, _ . and - only", path)
            if name == LOCAL:
                raise FieldError("is built in and takes no keys", "choose another name", path)
            for index, member in enumerate(entry.members or ()):
                if member not in single:
                    remedy = did_you_mean(member, single)
                    raise FieldError("no such provider", remedy, (*path, "members", index))
        return self
