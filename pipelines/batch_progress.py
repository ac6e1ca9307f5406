"""How far the batches under way are, in a few words for whoever watches the run."""

from connectors.transport.token_usage import whole_count
from pipelines.batch_ledger import Batch
from pipelines.runtime.provider_api import Item


class BatchProgress:
    """Batches at the provider, and what of them is answered."""

    def __init__(self) -> None:
        self._answered: dict[str, tuple[int, int]] = {}

    def looked(self, batch: Batch, item: Item) -> None:
        """The provider has told how far a batch is."""
        told = item.get("request_counts")
        counts = told if isinstance(told, dict) else {}
        done = sum(whole_count(counts.get(name)) or 0 for name in ("completed", "failed"))
        self._answered[batch.mark] = (done, len(batch.lines))

    def forget(self, batch: Batch) -> None:
        """It is no longer under way."""
        self._answered.pop(batch.mark, None)

    def words(self) -> str | None:
        """What the run waits for; None where nothing is at the provider."""
        if not self._answered:
            return None
        done, lines = (sum(column) for column in zip(*self._answered.values(), strict=True))
        batches = f"{len(self._answered)} batch{'' if len(self._answered) == 1 else 'es'}"
        return f"{batches} at the provider: {done:,} of {lines:,} requests answered"
