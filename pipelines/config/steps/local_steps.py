"""The models of local steps: what a job does to its rows without a request."""

from collections.abc import Mapping
from typing import Annotated

import orjson
from pydantic import Field

from connectors.contracts import FrozenModel

Expressions = Annotated[dict[str, Annotated[str, Field(min_length=1)]], Field(min_length=1)]
"""Output -> SQL."""


class LocalStep(FrozenModel):
    """The keys of every local step."""

    name: str = Field(pattern=r"^[A-Za-z_][A-Za-z0-9_-]*$", description="Unique in the job.")
    keep: bool = Field(default=True, description="false: later steps see its outputs, the results have none of them.")

    @property
    def config_bytes(self) -> bytes:
        """Canonical bytes of all that can change its outputs, for the row fingerprint."""
        return orjson.dumps(self.model_dump(mode="json", exclude={"keep"}), option=orjson.OPT_SORT_KEYS)


class SelectStep(LocalStep):
    """Outputs that are computed by SQL from the row so far."""

    select: Expressions = Field(
        description="Output -> SQL expression over the row so far.",
        examples=[{"long": "length(body) > 1000"}],
    )
    when: str | None = Field(
        default=None, min_length=1, description="SQL predicate over the row so far; outputs are null unless true."
    )


LOCAL_STEPS: Mapping[str, type[LocalStep]] = {"select": SelectStep}
"""By the key that names the kind."""
