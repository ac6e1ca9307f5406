"""One process against the workers of a local Ray cluster, and how much one ledger actor and one limiter actor bear.

    python tests/bench/ray_speed.py                    # chat, 30,000 rows, workers on all cores
    python tests/bench/ray_speed.py --latency-ms 200 --concurrency 500
    python tests/bench/ray_speed.py --characters 8000  # rows of some pages instead of a few lines
    python tests/bench/ray_speed.py --kind typed       # answers of ten nested fields
    python tests/bench/ray_speed.py --kind vision --rows 3000   # a picture of 200 kB in every request
    python tests/bench/ray_speed.py --actors           # the two actors alone

Server, driver, actors and workers share the cores of this machine; the engines take turns. `sending` counts from the
first request to the last answer, `in all` the start of the cluster as well; CPU is that of all processes of the run,
in ms a row, and the start is reported separately.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import psutil  # type: ignore[import-untyped, unused-ignore]
import pyarrow as pa
import pyarrow.parquet as pq
from speed import HERE, STEPS, as_installed, rowmill, write_input, write_job

from connectors.records import Usage
from pipelines.engines.ray.ledger import LedgerActor, RemoteLedger
from pipelines.engines.ray.limits import LimiterActor, LimitSpec, LimitUsage
from pipelines.ledger.entries import PendingExchange, SettledExchange
from pipelines.ledger.ledger import Ledger

ALONE: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}


SIDE = 256
"""Pixels of a picture's side: 200 kB of noise, which no format makes smaller."""

PICTURES = 500
"""Pictures; further rows repeat them with another text."""

STEPS["vision"] = (
    'endpoint: chat, model: gpt-4o-mini, messages: [{user: [{text: "{{ text }}"}, {image: picture}]}], '
    "params: {max_tokens: 50}"
)


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of one engine."""

    sending: float
    """Rows a second from the first request to the last answer."""
    in_all: float
    """The same over the whole run."""
    cpu: float
    """Milliseconds a row, from the first request on, of all processes."""
    start: float
    """CPU seconds before that."""


def write_pictures(folder: Path, rows: int) -> None:
    """Pictures, and a column that names one for each row."""
    from PIL import Image

    dice = random.Random(1)
    (folder / "pictures").mkdir()
    for number in range(min(PICTURES, rows)):
        picture = Image.frombytes("RGB", (SIDE, SIDE), dice.randbytes(SIDE * SIDE * 3))
        picture.save(folder / f"pictures/{number}.png", compress_level=1)
    table = pq.read_table(folder / "input.parquet")
    names = pa.array([f"pictures/{row % PICTURES}.png" for row in range(rows)])
    pq.write_table(table.append_column("picture", names), folder / "input.parquet")


def cpu_of(process: psutil.Process, known: dict[int, float]) -> float:
    """CPU seconds of a process and all below it so far. `known`: what each had when it was seen last."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in (process, *process.children(recursive=True)):
            with contextlib.suppress(psutil.NoSuchProcess):
                known[one.pid] = sum(one.cpu_times()[:2])
    return sum(known.values())


def one_run(engine: str, args: argparse.Namespace, server: psutil.Process, port: int) -> Ran:
    """One run of the job, in a workspace of its own."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "input.parquet", args.rows, args.characters)
        if args.kind == "vision":
            write_pictures(folder, args.rows)
        job = write_job(folder, args.kind, port, args.concurrency)
        served = sum(server.cpu_times()[:2])
        began = time.perf_counter()
        process = subprocess.Popen(
            [*rowmill("run", str(job), "--json", "--quiet"), "--engine", engine],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        seen, known, before = psutil.Process(process.pid), dict[int, float](), 0.0
        while process.poll() is None:
            cpu = cpu_of(seen, known)
            if sum(server.cpu_times()[:2]) == served:
                before = cpu
            time.sleep(0.1)
        seconds = time.perf_counter() - began
        out, said = process.communicate()
        report = json.loads(out)
        if report["rows_ok"] != args.rows:
            raise SystemExit(f"{engine}: {report['stopped']}\n{said}")
        ((sending,),) = duckdb.execute(
            "select date_diff('millisecond', min(started_at), max(started_at)) / 1000 "
            f"from read_parquet('{folder}/out/usage/*.parquet')"
        ).fetchall()
        cpu = sum(known.values()) - before
        return Ran(args.rows / sending, args.rows / seconds, cpu * 1000 / args.rows, before)


def engines(args: argparse.Namespace) -> None:
    """The table."""
    as_installed()
    server = subprocess.Popen(
        [sys.executable, str(HERE / "answering_server.py"), "0", str(args.latency_ms)],
        stdout=subprocess.PIPE,
        text=True,
    )
    assert server.stdout is not None
    port = int(server.stdout.readline().split()[-1])
    load = [os.getloadavg()[0]]
    found: dict[str, list[Ran]] = {"local": [], "ray": []}
    try:
        for _ in range(args.times):
            for engine, runs in found.items():
                runs.append(one_run(engine, args, psutil.Process(server.pid), port))
                load.append(os.getloadavg()[0])
    finally:
        server.terminate()
        server.wait()
    cores = len(os.sched_getaffinity(0))
    print(
        f"{args.kind}, {args.rows:,} rows of {args.characters:,} characters, {args.latency_ms:g} ms, "
        f"{args.concurrency} in flight, {cores} cores, load {min(load):.1f} to {max(load):.1f}; median of {args.times}"
    )
    print(f"{'engine':<8}{'sending':>10}{'in all':>10}  rows/s{'CPU':>10}  ms a row{'start':>8}  CPU s")
    for engine, runs in found.items():
        sending, in_all, cpu, start = (
            statistics.median(getattr(run, name) for run in runs) for name in ("sending", "in_all", "cpu", "start")
        )
        print(f"{engine:<8}{sending:>10,.0f}{in_all:>10,.0f}{cpu:>18.3f}{start:>18.1f}")


async def ledger_rate(actor: Any, writers: int, requests: int, in_flight: int) -> float:
    """Requests a second, each noted, then settled with an answer of 1 kB, by so many workers together."""
    reply, body = b"x" * 1000, b"y" * 400

    async def writer(number: int) -> None:
        far = RemoteLedger(actor, number, await actor.begin.remote(number))
        left = iter(range(requests // writers))

        async def sender() -> None:
            for _ in left:
                exchange_id = far.next_exchange_id()
                mark = exchange_id.to_bytes(16, "big")
                await far.record_pending(PendingExchange(exchange_id, 1, 1, b'["1"]', mark, 1, 1000))
                usage = Usage(60, 0, 20, model_version="m", finish_reason="stop")
                answers = ((mark, body, reply, None),)
                await far.settle(
                    SettledExchange(exchange_id, 1, 1, b'["1"]', mark, 1, 200, None, usage, 900, answers=answers)
                )

        await asyncio.gather(*(sender() for _ in range(in_flight)))

    began = time.perf_counter()
    await asyncio.gather(*(writer(number) for number in range(writers)))
    return requests / (time.perf_counter() - began)


async def limiter_rate(actor: Any, workers: int, calls: int) -> float:
    """Renewals a second by so many workers."""
    needs = {"requests": 1.0, "tokens": 1.0, "slots": 1.0}
    result = {"key": LimitUsage((1.0, 1.0), 1, frozenset(), (None, None), 0.0, needs)}

    async def worker(number: int) -> None:
        for _ in range(calls // workers):
            await actor.renew.remote(number, result, 0, 0)

    began = time.perf_counter()
    await asyncio.gather(*(worker(number) for number in range(workers)))
    return calls / (time.perf_counter() - began)


def actors() -> None:
    """Rates of both actors; the driver, on another core, is all of their workers."""
    import ray

    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "ledger.sqlite"
        ledger = Ledger(path)
        ledger.register_route("run", "job", "step", "provider", "chat", "m")
        ray.init(address="local", object_store_memory=256 << 20, **ALONE)
        far = ray.remote(num_cpus=0, max_concurrency=100_000)(LedgerActor).remote(path, "job", "process")
        for writers, in_flight in ((1, 100), (4, 100), (4, 500)):
            rate = asyncio.run(ledger_rate(far, writers, 20_000, in_flight))
            print(f"ledger actor, {writers} workers with {in_flight} in flight each: {rate:,.0f} requests/s")
            ray.kill(far)
            far = ray.remote(num_cpus=0, max_concurrency=100_000)(LedgerActor).remote(path, "job", "process")
        limits = {"key": LimitSpec(60_000, 1_000_000, 500)}
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
    said.add_argument("--kind", choices=["chat", "typed", "vision", "embeddings"], default="chat")
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
