"""Back-pressure by unread answers: senders wait while the answers that are yet to be read take too much memory."""

import asyncio

EARLY_READ_BYTES = 4 << 20
"""Size of a submission's answers from which on they are read before the others have arrived."""
MAX_UNREAD_BYTES = 16 << 20
"""Size of all unread answers from which on nothing is sent that would bring more."""
LARGE_ANSWER_BYTES = 64 << 10
"""Size from which on an answer is written in a thread, and before the next request is sent."""


class ReadBuffer:
    """The bytes of the answers that are yet to be read."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._released = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether senders must wait."""
        return self.nbytes >= MAX_UNREAD_BYTES

    def add(self, nbytes: int) -> None:
        """Count answers that should be read now."""
        self.nbytes += nbytes

    def release(self, nbytes: int) -> None:
        """Count answers that have been read."""
        self.nbytes -= nbytes
        self._released.set()

    async def wait_for_space(self) -> None:
        """Wait until more answers may arrive."""
        while self.is_full:
            self._released.clear()
            await self._released.wait()
