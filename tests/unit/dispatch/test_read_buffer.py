"""The read buffer: senders wait while too many bytes of answers are unread."""

import asyncio

from pipelines.dispatch.read_buffer import MAX_UNREAD_BYTES, ReadBuffer


async def test_a_sender_waits_while_the_buffer_is_full_and_goes_on_after_a_release() -> None:
    buffer = ReadBuffer()
    buffer.add(MAX_UNREAD_BYTES + 10)
    waiting = asyncio.create_task(buffer.wait_for_space())
    await asyncio.sleep(0)
    buffer.release(5)
    await asyncio.sleep(0)
    assert (buffer.is_full, waiting.done()) == (True, False)
    buffer.release(6)
    await waiting
    assert (buffer.is_full, buffer.nbytes) == (False, MAX_UNREAD_BYTES - 1)


async def test_nobody_waits_for_an_empty_buffer() -> None:
    await ReadBuffer().wait_for_space()
