"""The base of sections of a job file or workspace that take no number in quotes."""

from pydantic import ConfigDict

from connectors.contracts import FrozenModel


class StrictModel(FrozenModel):
    """A frozen model without conversions: "5" is text, not a number."""

    model_config = ConfigDict(strict=True)
