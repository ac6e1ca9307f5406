"""Answers that have come and are not read yet: bounded by their bytes, whatever the number of their rows."""

import asyncio

EARLY_READ_BYTES = 4 << 20
"""Bytes of answers in one wave: with more it is read before the rest of it has come."""
MAX_UNREAD_BYTES = 16 << 20
"""Bytes of answers that are to be read: with more, what would bring further ones is not sent."""
LARGE_ANSWER_BYTES = 64 << 10
"""Bytes of one answer that is worth a thread, or a look at who still holds it."""


class ReadBuffer:
    """How much waits to be read; senders wait while it is too much."""

    def __init__(self) -> None:
        self.nbytes = 0
        self._less = asyncio.Event()

    @property
    def is_full(self) -> bool:
        """Whether senders must wait."""
        return self.nbytes >= MAX_UNREAD_BYTES

    def add(self, nbytes: int) -> None:
        """So much is to be read now."""
        self.nbytes += nbytes

    def release(self, nbytes: int) -> None:
        """So much of it has been read."""
        self.nbytes -= nbytes
        self._less.set()

    async def wait_for_space(self) -> None:
        """Wait until more may come."""
        while self.is_full:
            self._less.clear()
            await self._less.wait()
