"""One process against the workers of a local Ray cluster, and how much one ledger actor and one limiter actor bear.

    python tests/bench/ray_speed.py                    # chat, 30,000 rows, workers on all cores
    python tests/bench/ray_speed.py --latency-ms 200 --concurrency 500
    python tests/bench/ray_speed.py --characters 8000  # rows of some pages instead of a few lines
    python tests/bench/ray_speed.py --actors           # the two actors alone

Server, driver, actors and workers share the cores of this machine. `sending` counts from the first request to the last
answer, `in all` the start of the cluster as well.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from speed import HERE, write_input, write_job

from connectors.exchange import Usage
from connectors.ledger import Ledger, Settled
from pipelines.ray_ledger import FarLedger, LedgerActor
from pipelines.ray_limits import Limit, LimiterActor, Told

ALONE: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


def one_run(engine: str, rows: int, characters: int, port: int, concurrency: int) -> tuple[float, float]:
    """(rows/s while sending, rows/s in all)."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "input.parquet", rows, characters)
        job = write_job(folder, "chat", port, concurrency)
        command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", str(job), "--json", "--quiet"]
        began = time.perf_counter()
        done = subprocess.run([*command, "--engine", engine], capture_output=True, text=True, check=False)
        seconds = time.perf_counter() - began
        told = json.loads(done.stdout)
        if told["rows_ok"] != rows:
            raise SystemExit(f"{engine}: {told['stopped']}\n{done.stderr}")
        ((sending,),) = duckdb.execute(
            "select date_diff('millisecond', min(started_at), max(started_at)) / 1000 "
            f"from read_parquet('{folder}/out/usage/*.parquet')"
        ).fetchall()
        return rows / sending, rows / seconds


def engines(args: argparse.Namespace) -> None:
    """The table."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "answering_server.py"), "0", str(args.latency_ms)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline().split()[-1])
    try:
        found = {
            engine: [one_run(engine, args.rows, args.characters, port, args.concurrency) for _ in range(args.times)]
            for engine in ("local", "ray")
        }
    finally:
        server.terminate()
        server.wait()
    cores = len(os.sched_getaffinity(0))
    print(
        f"chat, {args.rows:,} rows of {args.characters:,} characters, {args.latency_ms:g} ms, "
        f"{args.concurrency} in flight, {cores} cores; median"
    )
    print(f"{'engine':<10}{'sending':>12}{'in all':>10}  rows/s")
    for engine, runs in found.items():
        sending, in_all = (statistics.median(run[place] for run in runs) for place in (0, 1))
        print(f"{engine:<10}{sending:>12,.0f}{in_all:>10,.0f}")


async def ledger_rate(actor: Any, writers: int, requests: int, in_flight: int) -> float:
    """Requests a second, each noted, then settled with an answer of 1 kB, by so many workers together."""
    reply, body = b"x" * 1000, b"y" * 400

    async def writer(number: int) -> None:
        far = FarLedger(actor, number, await actor.begin.remote(number))
        left = iter(range(requests // writers))

        async def sender() -> None:
            for _ in left:
                note = far.next_note()
                mark = note.to_bytes(16, "big")
                await far.note(note, 1, 1, b'["1"]', mark, 1000, 1)
                usage = Usage(60, 0, 20, model_version="m", finish_reason="stop")
                answers = ((mark, body, reply, None),)
                await far.settle(Settled(note, 1, 1, b'["1"]', mark, 1, 200, None, usage, 900, answers=answers))

        await asyncio.gather(*(sender() for _ in range(in_flight)))

    began = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(writers)))
    return requests / (time.perf_counter() - began)


async def limiter_rate(actor: Any, workers: int, calls: int) -> float:
    """Renewals a second by so many workers."""
    needs = {"requests": 1.0, "tokens": 1.0, "slots": 1.0}
    told = {"key": Told((1.0, 1.0), 1, frozenset(), (None, None), 0.0, needs)}

    async def worker(number: int) -> None:
        for _ in range(calls // workers):
            await actor.renew.remote(number, told, 0, 0)

    began = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(workers)))
    return calls / (time.perf_counter() - began)


def actors() -> None:
    """Rates of both actors; the driver, on another core, is all of their workers."""
    import ray

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.sqlite"
        ledger = Ledger(path)
        ledger.leg("run", "job", "step", "provider", "chat", "m")
        ray.init(address="local", object_store_memory=256 << 20, **ALONE)
        far = ray.remote(num_cpus=0, max_concurrency=100_000)(LedgerActor).remote(path, "job")
        for writers, in_flight in ((1, 100), (4, 100), (4, 500)):
            rate = asyncio.run(ledger_rate(far, writers, 20_000, in_flight))
            print(f"ledger actor, {writers} workers with {in_flight} in flight each: {rate:,.0f} requests/s")
            ray.kill(far)
            far = ray.remote(num_cpus=0, max_concurrency=100_000)(LedgerActor).remote(path, "job")
        limits = {"key": Limit(60_000, 1_000_000, 500)}
        for workers in (4, 50, 200):
            limiter = ray.remote(num_cpus=0, max_concurrency=100_000)(LimiterActor).remote(Path(name), limits, None)
            rate = asyncio.run(limiter_rate(limiter, workers, 4_000))
            print(f"limiter actor, {workers} workers: {rate:,.0f} renewals/s")
        ray.shutdown()
        ledger.close()


def main() -> None:
    """Run it."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--actors", action="store_true")
    said.add_argument("--rows", type=int, default=30_000)
    said.add_argument("--characters", type=int, default=200)
    said.add_argument("--latency-ms", type=float, default=0)
    said.add_argument("--concurrency", type=int, default=200)
    said.add_argument("--times", type=int, default=3)
    args = said.parse_args()
    if args.actors:
        actors()
    else:
        engines(args)


if __name__ == "__main__":
    main()
