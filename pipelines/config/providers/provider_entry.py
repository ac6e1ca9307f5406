"""The model of one provider in `rowmill.yaml`: address, key, what is added to its requests, limits and prices."""

import re
from typing import Annotated, Self

from pydantic import ConfigDict, Field, StringConstraints, field_validator, model_validator

from connectors.contracts import FrozenModel
from connectors.errors import FieldError
from pipelines.config.providers.base_urls import checked_base_url
from pipelines.config.providers.key_command import DEFAULT_TTL, split_command, ttl_seconds
from pipelines.config.providers.proxies import checked_proxy
from pipelines.config.strict_model import StrictModel
from pipelines.pricing.prices import PriceEntry

OPENAI_URL = "https://api.openai.com/v1"

PriceTable = dict[str, PriceEntry]
"""By model name."""

FORBIDDEN_HEADERS = frozenset({"host", "content-length", "content-type", "transfer-encoding", "connection"})
"""In lower case: they describe each request, so the transport sets them."""
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
"""RFC 9110 section 5.6.2."""


class ProviderLimits(StrictModel):
    """Limits of a provider's key, shared by all jobs; an absent limit does not apply."""

    requests_per_minute: int | None = Field(
        default=None, ge=1, le=10**9, description="Requests a minute.", examples=[3000]
    )
    tokens_per_minute: int | None = Field(
        default=None, ge=1, le=10**12, description="Tokens a minute, input and output.", examples=[2_000_000]
    )
    concurrency: int | None = Field(default=None, ge=1, le=10_000, description="Requests in flight.", examples=[64])


class VariableValue(FrozenModel):
    """A value that is read from a variable, and secret."""

    model_config = ConfigDict(populate_by_name=True)

    env: str = Field(description="Name of the variable.", examples=["TEAM"])

    @field_validator("env")
    @classmethod
    def _check_variable(cls, name: str) -> str:
        return _checked_variable(name)


Value = str | VariableValue
Name = Annotated[str, StringConstraints(min_length=1)]


class ProviderEntry(FrozenModel):
    """One provider, or a pool of them."""

    base_url: str | None = Field(default=None, description="Base URL of its API.", examples=[OPENAI_URL])
    api_key_env: str | None = Field(
        default=None,
        description="The variable that holds the key; without it, no key is sent.",
        examples=["OPENAI_API_KEY"],
    )
    api_key_command: str | None = Field(
        default=None,
        description="A command whose output is the key; run without a shell, in the workspace, at most 30 s.",
        examples=["gcloud auth print-access-token"],
    )
    api_key_ttl: str | None = Field(
        default=None,
        description=f"How long a key of the command is used; default {DEFAULT_TTL}. A 401 renews it earlier.",
        examples=[DEFAULT_TTL],
    )
    api_key_header: str | None = Field(
        default=None,
        description="The header that carries the bare key; default: `Authorization: Bearer KEY`.",
        examples=["api-key"],
    )
    headers: dict[str, Value] = Field(
        default_factory=dict,
        description="Added to every request; `{env: NAME}` reads a secret from a variable.",
        examples=[{"OpenAI-Project": "proj_1"}],
    )
    query: dict[Name, Value] = Field(
        default_factory=dict,
        description="Added to the address of every request; `{env: NAME}` as in headers.",
        examples=[{"api-version": "2025-04-01-preview"}],
    )
    models: dict[Name, Name] = Field(
        default_factory=dict,
        description="Model in the job -> model that is sent; part of no fingerprint.",
        examples=[{"gpt-4o-mini": "google/gemini-2.5-flash"}],
    )
    ca_file: Name | None = Field(
        default=None,
        description="Certificates (PEM) that are trusted in addition to the system's.",
        examples=["certs/corporate.pem"],
    )
    proxy: Value | None = Field(
        default=None,
        description="Always used; default: HTTPS_PROXY, HTTP_PROXY, ALL_PROXY and NO_PROXY.",
        examples=["http://proxy.internal:3128"],
    )
    limits: ProviderLimits = Field(default=ProviderLimits(), description="Limits of its key.")
    prices: PriceTable = Field(default_factory=dict, description="By model; they override the workspace's.")
    members: tuple[str, ...] | None = Field(
        default=None,
        min_length=1,
        description="A pool: the providers that share the work.",
        examples=[["openai", "gpu-box"]],
    )

    @property
    def variables(self) -> tuple[str, ...]:
        """The variables that the entry names."""
        values = (*self.headers.values(), *self.query.values(), self.proxy)
        named = [value.env for value in values if isinstance(value, VariableValue)]
        return (*named,) if self.api_key_env is None else (self.api_key_env, *named)

    @property
    def has_key(self) -> bool:
        """Whether a key is sent with its requests."""
        return self.api_key_env is not None or self.api_key_command is not None

    @property
    def ttl_seconds(self) -> float:
        """How long a key of the command is used."""
        return ttl_seconds(self.api_key_ttl or DEFAULT_TTL)

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

    @model_validator(mode="after")
    def _check_key(self) -> Self:
        if self.api_key_env is not None and self.api_key_command is not None:
            raise FieldError("cannot be combined with api_key_env", "keep one of them", ("api_key_command",))
        if self.api_key_ttl is not None and self.api_key_command is None:
            raise FieldError("has no effect without api_key_command", "leave it out", ("api_key_ttl",))
        return self

    @model_validator(mode="after")
    def _check_headers(self) -> Self:
        seen: set[str] = set()
        key_header = (self.api_key_header or "Authorization").lower()
        for name, value in self.headers.items():
            path = ("headers", name)
            if not _TOKEN.fullmatch(name):
                raise FieldError("not the name of a header", "write letters, digits and - only", path)
            if name.lower() in FORBIDDEN_HEADERS:
                raise FieldError("is set for each request and cannot be changed", "leave it out", path)
            if name.lower() == key_header:
                remedy = "name its variable: api_key_env; with api_key_header the key is sent as it is"
                raise FieldError("is the header of the key", remedy, path)
            if name.lower() in seen:
                raise FieldError("occurs twice, since capitals do not count", "keep one of them", path)
            if isinstance(value, str) and not value.isprintable():
                raise FieldError("holds characters that no header can have", "write it in one line", path)
            seen.add(name.lower())
        return self

    @field_validator("base_url")
    @classmethod
    def _check_base_url(cls, url: str | None) -> str | None:
        return None if url is None else checked_base_url(url)

    @field_validator("api_key_env")
    @classmethod
    def _check_variable(cls, name: str | None) -> str | None:
        return None if name is None else _checked_variable(name)

    @field_validator("api_key_command")
    @classmethod
    def _check_command(cls, command: str | None) -> str | None:
        if command is not None:
            split_command(command)
        return command

    @field_validator("api_key_ttl")
    @classmethod
    def _check_ttl(cls, ttl: str | None) -> str | None:
        if ttl is not None:
            ttl_seconds(ttl)
        return ttl

    @field_validator("api_key_header")
    @classmethod
    def _check_key_header(cls, name: str | None) -> str | None:
        if name is not None and not _TOKEN.fullmatch(name):
            raise FieldError("not the name of a header", "write e.g. api_key_header: api-key")
        if name is not None and name.lower() in FORBIDDEN_HEADERS:
            raise FieldError("is set for each request and cannot be changed", "write e.g. api_key_header: api-key")
        return name

    @field_validator("proxy")
    @classmethod
    def _check_proxy(cls, proxy: Value | None) -> Value | None:
        return checked_proxy(proxy, in_file=True) if isinstance(proxy, str) else proxy


def _checked_variable(name: str) -> str:
    # The value may be the key itself, so the message does not quote it.
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) or len(name) > 80:
        raise FieldError("not the name of a variable", "set one to the key and write its name, e.g. OPENAI_API_KEY")
    return name
