"""Optional parameters of requests: one that a provider's model refuses is left out, and the request is sent again."""

import orjson
from msgspec.structs import replace

from connectors.records import Call, RowError
from pipelines.dispatch.request_types import Route

OPTIONAL_PARAMETERS = ("stream_options",)
"""Keys that change no answer. Without `stream_options` a stream may report no usage: it counts at its maximum cost."""


class OptionalParameters:
    """What each provider's model refuses of OPTIONAL_PARAMETERS, learned in this run."""

    def __init__(self) -> None:
        self._refused: dict[tuple[str, str], set[str]] = {}

    def without_refused(self, member: Route, call: Call) -> Call:
        """Return the call without the parameters that the provider's model refuses."""
        if not self._refused:
            return call
        refused = self._refused.get((member.provider.name, member.model))
        if not refused or call.body is None or not any(_key(name) in call.body for name in refused):
            return call
        values = orjson.loads(call.body)
        return replace(call, body=orjson.dumps({name: value for name, value in values.items() if name not in refused}))

    def learn(self, member: Route, call: Call, error: RowError) -> bool:
        """Return whether an error refuses a parameter that the call has and can do without."""
        if error.error_class != "bad_request" or error.http_status not in (400, 422) or call.body is None:
            return False
        words = f"{error.param or ''} {error.message}"
        named = {name for name in OPTIONAL_PARAMETERS if name in words and _key(name) in call.body}
        if not named or named.isdisjoint(orjson.loads(call.body)):
            return False
        self._refused.setdefault((member.provider.name, member.model), set()).update(named)
        return True


def _key(name: str) -> bytes:
    return b'"' + name.encode() + b'":'
