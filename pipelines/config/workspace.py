"""The workspace: the folder where a job's relative paths start, with its providers, prices and rules."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal
from zoneinfo import ZoneInfo

from msgspec import Struct
from msgspec.structs import replace
from pydantic import ValidationError

from connectors.contracts import Provider
from connectors.errors import FieldError, JobError, KeyPath, did_you_mean
from connectors.transport.access.certificates import CertificateError, check_certificate_variables, read_ca_file
from connectors.transport.access.provider_access import provider_mask
from connectors.transport.access.secret_mask import MIN_WORD_LENGTH
from pipelines.config.env_file import DEFAULT_NAME, EnvFile, read_env_file
from pipelines.config.key_locations import KeyLocations
from pipelines.config.providers.base_urls import checked_base_url, is_loopback, is_unencrypted
from pipelines.config.providers.key_command import KeyCommand
from pipelines.config.providers.provider_entry import OPENAI_URL, ProviderEntry, VariableValue
from pipelines.config.providers.proxies import checked_proxy, environment_proxy
from pipelines.config.validation_messages import first_error, validation_errors
from pipelines.config.workspace_file import (
    FILE_NAME,
    LOCAL,
    OPENAI,
    WorkspaceBudget,
    WorkspaceFile,
)
from pipelines.config.yaml_reader import read_yaml
from pipelines.pricing.prices import PriceEntry


class Workspace(Struct, frozen=True):
    """The workspace of a job; a provider's key is read from the environment on demand and not stored."""

    folder: Path
    """Absolute."""
    settings: WorkspaceFile
    locations: KeyLocations
    has_file: bool

    @property
    def state(self) -> Path:
        """The folder of the ledger, locks and media: absolute; it may not exist yet."""
        return self.folder / self.settings.state

    @property
    def documents(self) -> Path:
        """The folder with the texts of documents that were read."""
        return self.state / "documents"

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
    def durability(self) -> Literal["process", "power"]:
        """What the ledger survives: the death of the process, or a power loss as well."""
        return self.settings.ledger.durability

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

    @property
    def named_variables(self) -> frozenset[str]:
        """The variables that the workspace reads: no other variable of the `.env` file has any effect on a run."""
        built_in = () if OPENAI in self.settings.providers else ("OPENAI_API_KEY", "OPENAI_BASE_URL")
        return frozenset(built_in).union(*(entry.variables for entry in self.settings.providers.values()))

    def variable(self, name: str) -> str | None:
        """Return the value of a variable that the workspace names: the environment's, else the `.env` file's."""
        if name in os.environ:
            return os.environ[name]
        return self._read_env_file().values.get(name) if name in self.named_variables else None

    def env_file_names(self) -> tuple[Path, tuple[str, ...]] | None:
        """Return the `.env` file and the variables that are read from it; None if there is no file."""
        if (file := self._env_file()) is None:
            return None
        return file, tuple(sorted((self._read_env_file().values.keys() & self.named_variables) - os.environ.keys()))

    def command_environment(self) -> Mapping[str, str]:
        """Return the environment of `api_key_command` and `on_finish`: with all variables of the `.env` file."""
        return {**self._read_env_file().values, **os.environ}

    def _env_file(self) -> Path | None:
        path = self.settings.env_file
        file = self.folder / (path or DEFAULT_NAME)
        if path is False or (path is None and not file.is_file()):
            return None
        return file

    def _read_env_file(self) -> EnvFile:
        # Read on demand and not stored, like the environment: a workspace travels to other processes.
        file = self._env_file()
        return EnvFile({}, ()) if file is None else read_env_file(file, self.locations.locate(("env_file",)))

    def warnings(self, names: Iterable[str]) -> tuple[str, ...]:
        """Return a line for each setting that is allowed but risky; `names`: the providers in a job's steps."""
        finding = "http without encryption to another machine"
        remedy = "write https where the server offers it"
        found = [
            f"{self.locations.locate(('providers', name, 'base_url'))}: {finding}"
            f"{', the key goes with it' if entry.has_key else ''}; {remedy}"
            for name, entry in self.settings.providers.items()
            if entry.base_url is not None and is_unencrypted(entry.base_url)
        ]
        members = {member for name in names for member in self.pools.get(name, (name,))}
        if OPENAI in members and OPENAI not in self.settings.providers and is_unencrypted(self._openai_base_url()):
            found.append(f"OPENAI_BASE_URL: {finding}, the key goes with it; {remedy}")
        return (*found, *self._short_secrets(members))

    def _short_secrets(self, providers: Iterable[str]) -> Iterator[str]:
        """Yield a line for each secret that is too short to be found in a message."""
        for name in sorted(providers):
            entry = self.settings.providers.get(name)
            for key in ("headers", "query") if entry is not None else ():
                for each, value in getattr(entry, key).items():
                    if isinstance(value, VariableValue) and 0 < len(self.variable(value.env) or "") < MIN_WORD_LENGTH:
                        yield (
                            f"{self.locations.locate(('providers', name, key, each))}: {value.env} has fewer than "
                            f"{MIN_WORD_LENGTH} characters and is not masked if the provider repeats it; "
                            "use a longer secret"
                        )

    def provider(self, name: str, where: str | None = None) -> Provider:
        """Return the provider with its key; JobError at `where` if it does not exist or its variable is not set.

        `where` None: the workspace's own file. The base_url of `local` is empty until the embedded server is started.
        """
        if name == LOCAL:
            return Provider(LOCAL, "", is_local=True)
        entry = self.settings.providers.get(name)
        if entry is None and name == OPENAI:
            try:
                url = checked_base_url(self._openai_base_url() or OPENAI_URL)
            except FieldError as exc:
                raise JobError("OPENAI_BASE_URL", exc.found, exc.remedy) from exc
            entry = ProviderEntry(base_url=url, api_key_env="OPENAI_API_KEY")
        if entry is None:
            raise JobError(where or self.locations.file, f"no provider {name}", did_you_mean(name, self.provider_names))
        if entry.base_url is None:
            members = ", ".join(entry.members or ())
            raise JobError(where or self.locations.file, f"{name} is a pool", f"name one of its members: {members}")
        path = ("providers", name)
        secrets: list[str] = []

        def resolved(values: Mapping[str, str | VariableValue], key: str) -> dict[str, str]:
            return {each: self._value(value, (*path, key, each), secrets) for each, value in values.items()}

        provider = Provider(
            name,
            entry.base_url,
            self._key(name, entry, where),
            entry.limits.requests_per_minute,
            entry.limits.tokens_per_minute,
            entry.limits.concurrency,
            entry.prices,
            is_loopback(entry.base_url),
            api_key_header=entry.api_key_header,
            key_source=self._key_command(name, entry),
            headers=resolved(entry.headers, "headers"),
            query=resolved(entry.query, "query"),
            secrets=tuple(secrets),
            models=entry.models,
            ca_certificates=self._ca_certificates(name, entry),
            proxy=self._proxy(name, entry),
        )
        # From here on no traceback shows the provider's secrets.
        provider_mask(provider)
        return provider

    def members(self, name: str, where: str | None = None) -> tuple[Provider, ...]:
        """Return the providers of a pool, or the one with this name; JobError as for `provider`."""
        return tuple(self.provider(member, where) for member in self.pools.get(name, (name,)))

    def _key(self, name: str, entry: ProviderEntry, where: str | None) -> str | None:
        if entry.api_key_env is None:
            return None
        if name in self.settings.providers:
            where = self.locations.locate(("providers", name, "api_key_env"))
        key = self._required(entry.api_key_env, "YOUR_KEY", where or f"provider {name}")
        # A header of its own may carry a scheme before the key.
        is_key = key.isascii() and key.isprintable() and (" " not in key or entry.api_key_header is not None)
        if not is_key:
            found = f"{entry.api_key_env} holds characters that no key has"
            raise JobError(where or f"provider {name}", found, "copy the key again")
        return key

    def _required(self, variable: str, example: str, where: str) -> str:
        value = (self.variable(variable) or "").strip()
        if value:
            return value
        lines = self._read_env_file().unreadable_lines
        doubt = f", whose line {lines[0]} is no assignment" if lines else ""
        remedy = f"export {variable}={example}"
        if self.settings.env_file is not False:
            remedy += f", or write {variable}={example} in {self._env_file_name()}{doubt}"
        raise JobError(where, f"the variable {variable} is not set", remedy)

    def _env_file_name(self) -> str:
        return self.settings.env_file or DEFAULT_NAME

    def _value(self, value: str | VariableValue, path: KeyPath, secrets: list[str]) -> str:
        """Return the value of a header, of a part of the query or of a proxy; adds it to `secrets` if it is one."""
        if isinstance(value, str):
            return value
        where = self.locations.locate(path)
        found = self._required(value.env, "VALUE", where)
        if not found.isprintable():
            raise JobError(where, f"{value.env} holds line breaks or control characters", "write it in one line")
        secrets.append(found)
        return found

    def _key_command(self, name: str, entry: ProviderEntry) -> KeyCommand | None:
        if entry.api_key_command is None:
            return None
        where = self.locations.locate(("providers", name, "api_key_command"))
        return KeyCommand(entry.api_key_command, self.folder, entry.ttl_seconds, where, self.command_environment())

    def _ca_certificates(self, name: str, entry: ProviderEntry) -> str | None:
        if (entry.base_url or "").startswith("https:"):
            try:
                check_certificate_variables()
            except CertificateError as exc:
                raise JobError("", exc.found, exc.remedy) from exc
        if entry.ca_file is None:
            return None
        try:
            return read_ca_file(self.folder / entry.ca_file)
        except CertificateError as exc:
            raise JobError(self.locations.locate(("providers", name, "ca_file")), exc.found, exc.remedy) from exc

    def _proxy(self, name: str, entry: ProviderEntry) -> str | None:
        if entry.proxy is not None:
            path = ("providers", name, "proxy")
            where, address = self.locations.locate(path), self._value(entry.proxy, path, [])
        elif (named := environment_proxy(entry.base_url or "")) is not None:
            where, address = named
        else:
            return None
        try:
            return checked_proxy(address, in_file=False)
        except FieldError as exc:
            raise JobError(where, exc.found, exc.remedy) from exc

    def _openai_base_url(self) -> str:
        return (self.variable("OPENAI_BASE_URL") or "").strip()


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
        key_source=None,
        headers={},
        query={},
        secrets=(),
        models={},
        ca_certificates=None,
        proxy=None,
        requests_per_minute=_sum_of_limits([member.requests_per_minute for member in members]),
        tokens_per_minute=_sum_of_limits([member.tokens_per_minute for member in members]),
        concurrency=_sum_of_limits([member.concurrency for member in members]),
        prices={},
        is_local=all(member.is_local for member in members),
    )


@cache
def _workspace_schema() -> dict[str, Any]:
    return WorkspaceFile.model_json_schema()


def _sum_of_limits(limits: Sequence[int | None]) -> int | None:
    known = [limit for limit in limits if limit is not None]
    return sum(known) if len(known) == len(limits) else None
