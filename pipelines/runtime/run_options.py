"""What a command asks of a run besides the job file."""

from collections.abc import Callable
from typing import Literal

from msgspec import Struct

LogFormat = Literal["plain", "json"]

SchemaChange = Literal["cast", "backfill"]
"""What to do if the sink's tables have other columns than the job: cast their rows, or request all rows again."""

FailOn = Literal["any", "new"]
"""When failed rows make the exit code 1: any row in errors, or only rows that failed in this invocation."""


class RunOptions(Struct, frozen=True):
    """The options of one invocation, from the command to the engine."""

    is_new_run: bool = False
    """Close the job's open run and start another one, with its own budget."""
    retried_classes: frozenset[str] | None = None
    """Error classes whose rows are requested again although the row itself caused the error; None: no retry."""
    schema_change: SchemaChange | None = None
    """None: refuse a sink whose tables have other columns."""
    is_on_ray: bool = False
    log: LogFormat = "plain"
    is_quiet: bool = False
    fail_on: FailOn = "any"
    row_keys: frozenset[str] | None = None
    """Keys, as text, of the only rows to process; None: all."""
    is_trial: bool = False
    """Whether its tables do not stay: then the ledger keeps its answers, even with `keep_answers: committed`."""
    on_request: Callable[[bytes], None] | None = None
    """Called with the fingerprint of every request, also of those whose answer the ledger has; not on Ray."""
    grace_seconds: float = 30.0
    """How long requests in flight may still finish after the first Ctrl-C."""
