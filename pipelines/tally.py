"""What one invocation has done so far: counted as it happens, read by progress and the closing report."""

import time
from dataclasses import dataclass, field


@dataclass(slots=True)
class Tally:
    """Counts of this invocation; money in pico-dollars."""

    rows: int = 0
    """After where and limit."""
    rows_ok: int = 0
    rows_reused: int = 0
    """The part of rows_ok that needed no request now."""
    rows_failed: int = 0
    committed: int = 0
    """Rows and failures of this invocation that are in the sink."""
    settled: int = 0
    """Rows whose last outcome came from an exchange of this invocation."""
    settled_failed: int = 0
    requests: int = 0
    """HTTP exchanges sent."""
    retries: int = 0
    """Those after the first of their request, 429s included."""
    refused: int = 0
    """429s."""
    in_flight: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: int = 0
    unpriced: int = 0
    """Exchanges whose cost is not known."""
    began: float = field(default_factory=time.monotonic)

    @property
    def rows_left(self) -> int:
        return self.rows - self.rows_ok - self.rows_failed

    @property
    def seconds(self) -> float:
        return time.monotonic() - self.began
