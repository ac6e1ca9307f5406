"""What the ledger writes: bytes to the disk for each byte kept, and CPU time, from the first to the last answers.

    python tests/bench/ledger_writes.py 1000000 [process|power]

Each answer is of the size of `chat` in `speed.py`: 291 bytes of request, 325 of reply. Linux only: /proc/self/io.
"""

import asyncio
import hashlib
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger
from pipelines.ledger.ledger_file import Durability

IN_FLIGHT = 64
"""As a run does it, some 30 answers are written in one transaction."""

PARTS = 10
"""Lines of the table."""


async def answer(ledger: Ledger, route_id: int, numbers: Sequence[int]) -> None:
    """Record one exchange after the other, each with its answer."""
    for number in numbers:
        fingerprint = hashlib.blake2b(str(number).encode(), digest_size=16).digest()
        keys, sent = f'["{number}"]'.encode(), f"{number:<291}".encode()
        pending = PendingExchange(ledger.next_exchange_id(), route_id, 1, keys, fingerprint, time.time_ns() // 1000, 9)
        await ledger.record_pending(pending)
        await ledger.settle(
            SettledExchange(
                pending.exchange_id, route_id, 1, keys, fingerprint, pending.started_at, 200, cost=21_000_000,
                latency_ms=64.8, request_id="r-1", answers=[(fingerprint, sent, b"y" * 325, None)],
            )
        )  # fmt: skip


def written_bytes() -> int:
    """Bytes that this process has caused to be written to a disk."""
    return int(Path("/proc/self/io").read_text().split("write_bytes: ")[1].split()[0])


def kept_bytes(ledger: Ledger) -> int:
    """Bytes of the ledger, those in its log included."""
    ((pages, page_bytes),) = ledger.query("select page_count, page_size from pragma_page_count, pragma_page_size")
    return int(pages * page_bytes)


def peak_mb() -> int:
    """Million bytes of the largest resident set so far."""
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024 // 1_000_000


def ledger_writes(rows: int, durability: Durability = "process") -> list[list[str]]:
    """Fill a ledger; return a table of what it took so far, with one line for each tenth of the answers."""
    lines = [["answers", "MB kept", "written / kept", "CPU ms an answer", "answers/s", "slowest ms", "peak MB"]]
    with tempfile.TemporaryDirectory() as name:
        ledger = Ledger(Path(name) / "ledger.sqlite", durability)
        route_id = ledger.register_route("run", "job", "step", "provider", "chat", "model")
        before = written_bytes()
        for part in range(PARTS):
            began, cpu, first = time.perf_counter(), time.process_time(), rows * part // PARTS
            last = rows * (part + 1) // PARTS
            slowest = asyncio.run(fill(ledger, route_id, range(first, last)))
            used, seconds = time.process_time() - cpu, time.perf_counter() - began
            kept = kept_bytes(ledger)
            if part == PARTS - 1:
                ledger.close()
            written = written_bytes() - before
            lines.append(
                [
                    f"{last:,}", f"{kept / 1e6:,.0f}", f"{written / kept:.1f}", f"{used * 1000 / (last - first):.3f}",
                    f"{(last - first) / seconds:,.0f}", f"{slowest * 1000:,.0f}", str(peak_mb()),
                ]
            )  # fmt: skip
    return lines


async def fill(ledger: Ledger, route_id: int, numbers: range) -> float:
    """Store these answers; return the longest time in seconds that the ledger took for one write."""
    longest, done = 0.0, asyncio.Event()

    async def watch() -> None:
        nonlocal longest
        while not done.is_set():
            began = time.perf_counter()
            await ledger.write_queued("delete from days where day = ''", ())
            longest = max(longest, time.perf_counter() - began)
            await asyncio.sleep(0.02)

    watching = asyncio.create_task(watch())
    await asyncio.gather(*(answer(ledger, route_id, numbers[start::IN_FLIGHT]) for start in range(IN_FLIGHT)))
    done.set()
    await watching
    return longest


if __name__ == "__main__":
    durability = sys.argv[2] if len(sys.argv) > 2 else "process"
    assert durability in get_args(Durability)
    for line in ledger_writes(int(sys.argv[1]), durability):  # type: ignore[arg-type]
        print(*line, sep="\t", flush=True)
