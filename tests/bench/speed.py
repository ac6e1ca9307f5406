"""Rowmill beside a bare aiohttp loop (and the official SDK) in the same run: ratios, CPU, memory; median of three.

    python tests/bench/speed.py                 # chat, 10,000 rows, a server that answers at once
    python tests/bench/speed.py --rows 100000   # more rows
    python tests/bench/speed.py --kind embeddings --rows 100000
    python tests/bench/speed.py --kind typed
    python tests/bench/speed.py --latency-ms 200 --concurrency 200

The server has one core, the client the other; start-up is included.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

HERE = Path(__file__).parent
TYPED = """{
  sentiment: {type: string, enum: [positive, negative]}, score: {type: number}, stars: {type: integer},
  topics: {type: array, items: {type: string}},
  place: {type: object, properties: {city: {type: string}, country: {type: string}}},
  price: {type: string}, recommended: {type: boolean}, language: {type: string}, summary: {type: string},
  people: {type: array, items: {type: object, properties: {name: {type: string}, role: {type: string}}}}}"""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one client."""

    rows_per_second: float
    cpu_seconds: float
    """For 1,000 rows."""
    peak_mb: float


def measured(command: list[str], rows: int, core: int) -> Measured:
    """Run a client on a core of its own, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, _resident(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{command[:6]} ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(rows / seconds, cpu * 1000 / rows, peak)


def _resident(pid: int) -> float:
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def write_input(path: Path, rows: int, characters: int) -> None:
    """Rows of a text each; no two are alike."""
    text = "The food was good, the service slow, and we will come again with our friends. " * (characters // 78 + 1)
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, rows, 50_000):
            ids = range(start, min(rows, start + 50_000))
            texts = [f"{key}: {text[: characters - 8]}" for key in ids]
            writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "text": texts}))


def write_job(folder: Path, kind: str, port: int, concurrency: int) -> Path:
    """The workspace and the job file."""
    (folder / "rowmill.yaml").write_text(f'providers: {{bench: {{base_url: "http://127.0.0.1:{port}/v1"}}}}\n')
    step = "provider: bench, name: answer"
    if kind == "embeddings":
        step += ', endpoint: embeddings, model: text-embedding-3-small, input: "{{ text }}"'
    else:
        step += ', endpoint: chat, model: gpt-4o-mini, messages: [{user: "Label this: {{ text }}"}]'
        step += ", params: {max_tokens: 50}"
    step += f", output: {TYPED}" if kind == "typed" else ""
    job = folder / "bench.yaml"
    job.write_text(
        f"name: bench\nsource: {{parquet: input.parquet, key: id}}\nsteps: [{{{step}}}]\nsink: {{parquet: out}}\n"
        f"limits: {{concurrency: {concurrency}}}\n"
    )
    return job


def main() -> None:
    """Run all clients in turn, so often, and print the table."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--kind", choices=["chat", "typed", "embeddings"], default="chat")
    said.add_argument("--rows", type=int, default=10_000)
    said.add_argument("--characters", type=int, default=200)
    said.add_argument("--latency-ms", type=float, default=0)
    said.add_argument("--concurrency", type=int, default=200)
    said.add_argument("--times", type=int, default=3)
    said.add_argument("--clients", default="bare,rowmill", help="Of bare, rowmill, sdk, with commas between.")
    args = said.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    server_core, client_core = cores[-1], cores[0]
    server = subprocess.Popen(
        [sys.executable, str(HERE / "answering_server.py"), "0", str(args.latency_ms)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {server_core}),
    )
    assert server.stdout is not None
    port = int(server.stdout.readline().split()[-1])
    found: dict[str, list[Measured]] = {}
    try:
        for _ in range(args.times):
            for client in args.clients.split(","):
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    source = folder / "input.parquet"
                    write_input(source, args.rows, args.characters)
                    command = client_command(client, args.kind, folder, source, port, args.concurrency)
                    found.setdefault(client, []).append(measured(command, args.rows, client_core))
    finally:
        server.terminate()
        server.wait()
    bare = statistics.median(one.rows_per_second for one in found["bare"]) if "bare" in found else None
    print(
        f"{args.kind}, {args.rows:,} rows, {args.latency_ms:g} ms, {args.concurrency} in flight; median of {args.times}"
    )
    print(f"{'client':<10}{'rows/s':>10}{'× bare':>8}{'CPU s / 1,000':>15}{'peak MB':>9}")
    for client, runs in found.items():
        rate = statistics.median(one.rows_per_second for one in runs)
        ratio = "" if bare is None else f"{rate / bare:.2f}"
        cpu = statistics.median(one.cpu_seconds for one in runs)
        print(f"{client:<10}{rate:>10,.0f}{ratio:>8}{cpu:>15.3f}{max(one.peak_mb for one in runs):>9.0f}")
    print(
        json.dumps({client: [one.rows_per_second for one in runs] for client, runs in found.items()}), file=sys.stderr
    )


def client_command(client: str, kind: str, folder: Path, source: Path, port: int, concurrency: int) -> list[str]:
    """How a client is started."""
    base = f"http://127.0.0.1:{port}/v1"
    target = str(folder / "answers.parquet")
    if client == "rowmill":
        job = write_job(folder, kind, port, concurrency)
        return [sys.executable, "-c", "from pipelines.cli import main; main()", "run", str(job), "--quiet"]
    if client == "sdk":
        return [sys.executable, str(HERE / "sdk_loop.py"), base, str(source), target, str(concurrency)]
    what, path = ("embeddings", "/embeddings") if kind == "embeddings" else ("chat", "/chat/completions")
    in_flight = str(32 if kind == "embeddings" else concurrency)
    return [sys.executable, str(HERE / "bare_loop.py"), what, base + path, str(source), target, in_flight]


if __name__ == "__main__":
    main()
