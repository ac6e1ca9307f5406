"""Keys that expire, on Ray: their commands run on the driver's machine, and workers ask for the keys."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from msgspec.structs import replace

from connectors.contracts import KeyUnavailable, Provider
from pipelines.config.providers.key_command import KeyCommand
from pipelines.engines.ray.ledger import actor_result


class KeyActor:
    """Runs the commands of providers, for all workers."""

    def __init__(self, commands: Mapping[str, KeyCommand]) -> None:
        """By name of the provider."""
        self._commands = commands

    async def key(self, provider: str, rejected: str | None) -> tuple[str, float, str | None]:
        """Return (key, seconds for which it is used, why there is none)."""
        command = self._commands[provider]
        try:
            key = await (command.current_key() if rejected is None else command.renewed_key(rejected))
        except KeyUnavailable as exc:
            return "", 0.0, str(exc)
        return key, command.seconds_left, None


class RemoteKeys:
    """A KeySource of a worker: one provider's keys from the actor."""

    def __init__(self, actor: Any, provider: str) -> None:
        self._actor = actor
        self._provider = provider
        self._keys: list[str] = []
        self._used_until = 0.0

    @property
    def known_keys(self) -> Sequence[str]:
        """See KeySource, as for all public methods."""
        return tuple(self._keys)

    def prepare(self) -> None:
        """The driver has obtained the first key."""

    async def current_key(self) -> str:
        if self._keys and time.monotonic() < self._used_until:
            return self._keys[-1]
        return await self._request(None)

    async def renewed_key(self, rejected: str) -> str:
        if self._keys and self._keys[-1] != rejected:
            return self._keys[-1]
        return await self._request(rejected)

    async def _request(self, rejected: str | None) -> str:
        key, seconds, problem = await actor_result(self._actor.key.remote(self._provider, rejected))
        if problem is not None:
            raise KeyUnavailable(problem)
        if key not in self._keys:
            self._keys.append(key)
        self._used_until = time.monotonic() + seconds
        return str(key)


def key_commands(members: Mapping[str, Provider]) -> Mapping[str, KeyCommand]:
    """Return the commands of the providers that have one."""
    return {name: one.key_source for name, one in members.items() if isinstance(one.key_source, KeyCommand)}


def with_remote_keys(provider: Provider, actor: Any) -> Provider:
    """Return the provider for a worker; only the actor has its command."""
    return provider if provider.key_source is None else replace(provider, key_source=RemoteKeys(actor, provider.name))
