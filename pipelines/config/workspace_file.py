"""The models of `rowmill.yaml`: providers, limits, prices, budget and rules of a workspace."""

import re
from typing import Literal, Self
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import Field, field_validator, model_validator

from connectors.contracts import FrozenModel
from connectors.errors import FieldError, did_you_mean
from pipelines.config.base_urls import checked_base_url
from pipelines.config.strict_model import StrictModel
from pipelines.pricing.prices import PriceEntry

FILE_NAME = "rowmill.yaml"
LOCAL = "local"
"""The embedded provider: available in every workspace, always free."""
OPENAI = "openai"
"""Available in every workspace; its key is in OPENAI_API_KEY unless the file says otherwise."""
OPENAI_URL = "https://api.openai.com/v1"

PriceTable = dict[str, PriceEntry]
"""By model name."""


class ProviderLimits(StrictModel):
    """Limits of a provider's key, shared by all jobs; an absent limit does not apply."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests a minute.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens a minute, both ways.", examples=[2_000_000]
    )
    concurrency: int | None = Field(default=None, ge=1, le=10_000, description="Requests in flight.", examples=[64])


class ProviderEntry(FrozenModel):
    """One provider, or a pool of them."""

    base_url: str | None = Field(default=None, description="Base URL of its API.", examples=[OPENAI_URL])
    api_key_env: str | None = Field(
        default=None,
        description="The variable that holds the key; left out: no key is sent.",
        examples=["OPENAI_API_KEY"],
    )
    limits: ProviderLimits = Field(default=ProviderLimits(), description="Limits of its key.")
    prices: PriceTable = Field(default_factory=dict, description="By model; they override the workspace's.")
    members: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A pool: the providers that share the work.",
        examples=[["openai", "gpu-box"]],
    )

    @model_validator(mode="after")
    def _check_provider_or_pool(self) -> Self:
        if self.members is not None:
            others = sorted(self.model_fields_set - {"members"})
            if others:
                remedy = "a pool takes it from each of its members"
                raise FieldError("cannot be combined with members", remedy, (others[0],))
        elif self.base_url is None:
            raise FieldError("missing", f"write e.g. base_url: {OPENAI_URL}", ("base_url",))
        return self

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str | None) -> str | None:
        return None if url is None else checked_base_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, name: str | None) -> str | None:
        # The value may be the key itself, so the message does not quote it.
        if name is not None and (not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > 80):
            raise FieldError("not the name of a variable", "set one to the key and write its name, e.g. OPENAI_API_KEY")
        return name


class WorkspaceBudget(StrictModel):
    """What all jobs together may cost a day, in the workspace's time zone."""

    usd_per_day: float = Field(ge=0, le=10**6, allow_inf_nan=False, description="US dollars.", examples=[40.0])


class WorkspaceFile(FrozenModel):
    """The contents of `rowmill.yaml`."""

    providers: dict[str, ProviderEntry] = Field(default_factory=dict, description="By name.")
    state: str = Field(default=".rowmill", min_length=1, description="Folder of the ledger, locks and media.")
    roots: tuple[str, ...] = Field(
        default=(), description="Folders outside that row values and `sql:` may name.", examples=[["/mnt/media"]]
    )
    hosts: tuple[str, ...] = Field(
        default=(), description="Private hosts that jobs may fetch from.", examples=[["media.internal"]]
    )
    budget: WorkspaceBudget | None = Field(default=None, description="Over all jobs.", examples=[{"usd_per_day": 40.0}])
    time_zone: str = Field(default="UTC", description="Of schedules, deadlines and days.", examples=["Europe/Berlin"])
    keep_answers: Literal["pruned", "committed"] = Field(
        default="pruned",
        description="pruned: until `ledger prune`; committed: dropped once their row is in the sink.",
        examples=["pruned"],
    )
    prices: PriceTable = Field(default_factory=dict, description="By model; they override the built-in table.")

    @field_validator("time_zone")
    @classmethod
    def _check_time_zone(cls, name: str) -> str:
        try:
            ZoneInfo(name)
        except (ZoneInfoNotFoundError, ValueError, OSError) as exc:
            raise FieldError(f'found "{name}", not a time zone', "write e.g. time_zone: Europe/Berlin") from exc
        return name

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
