"""Rowmill next to a bare aiohttp loop (and the official SDK) in the same run: ratios, CPU, memory; median of three.

    python tests/bench/speed.py                 # chat, 10,000 rows, a server that answers at once
    python tests/bench/speed.py --rows 100000   # more rows
    python tests/bench/speed.py --kind embeddings --rows 100000
    python tests/bench/speed.py --kind typed
    python tests/bench/speed.py --latency-ms 200 --concurrency 200
    python tests/bench/speed.py --clients rowmill,rowmill-power     # the price of `ledger: {durability: power}`

The server has one core, the client the other; start-up is included. `tests/bench/all.py` measures the whole set.
"""

import argparse
import compileall
import contextlib
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
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
STEPS = {
    "chat": 'endpoint: chat, model: gpt-4o-mini, messages: [{user: "Label this: {{ text }}"}], '
    "params: {max_tokens: 50}",
    "embeddings": 'endpoint: embeddings, model: text-embedding-3-small, input: "{{ text }}"',
    "images": 'endpoint: image_generation, model: gpt-image-1, prompt: "{{ text }}", params: {quality: low}',
    "audio": "endpoint: transcription, model: whisper-1, file: text, language: en",
}
STEPS["packed"] = f"{STEPS['chat']}, pack: {{rows: 20}}"
STEPS["checked"] = f"{STEPS['chat']}, check: [length(answer) between 1 and 10000, answer <> text]"
STEPS["typed"] = f"{STEPS['chat']}, output: {TYPED}"

DURABILITY = {"rowmill": "process", "rowmill-power": "power"}
"""Client -> how it writes the ledger."""


@dataclass(frozen=True, slots=True)
class Measured:
    """One run of one client."""

    rows: int
    seconds: float
    cpu_seconds: float
    peak_mb: float
    """Million bytes of the largest resident set."""

    @property
    def rate(self) -> float:
        """Rows a second."""
        return self.rows / self.seconds

    @property
    def cpu_of_1000(self) -> float:
        """CPU seconds for 1,000 rows."""
        return self.cpu_seconds * 1000 / self.rows


def measured(command: Sequence[str], rows: int, core: int) -> Measured:
    """Run a client on a core of its own, to its end."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {core}))
    peak = 0.0
    while process.poll() is None:
        peak = max(peak, peak_of(process.pid))
        time.sleep(0.02)
    seconds = time.perf_counter() - began
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if process.returncode:
        raise SystemExit(f"{command[:8]} ended with {process.returncode}")
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Measured(rows, seconds, cpu, peak)


def peak_of(pid: int) -> float:
    """Million bytes of the largest resident set so far; 0 where the process is gone."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM"):
                return int(line.split()[1]) * 1024 / 1e6
    return 0.0


def write_input(path: Path, rows: int, characters: int) -> None:
    """Rows of a text each; no two are alike."""
    text = "The food was good, the service slow, and we will come again with our friends. " * (characters // 78 + 1)
    group = max(1, min(50_000, (8 << 20) // characters))
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, rows, group):
            ids = range(start, min(rows, start + group))
            texts = [f"{key}: {text[: characters - 8]}" for key in ids]
            writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "text": texts}))


def write_job(folder: Path, kind: str, port: int, concurrency: int, durability: str = "process") -> Path:
    """The workspace and the job file."""
    (folder / "rowmill.yaml").write_text(
        f'providers: {{bench: {{base_url: "http://127.0.0.1:{port}/v1"}}}}\nledger: {{durability: {durability}}}\n'
    )
    job = folder / "bench.yaml"
    job.write_text(
        "name: bench\nsource: {parquet: input.parquet, key: id}\n"
        f"steps: [{{provider: bench, name: answer, {STEPS[kind]}}}]\nsink: {{parquet: out}}\n"
        f"limits: {{concurrency: {concurrency}}}\n"
    )
    return job


def cores() -> tuple[int, int]:
    """(the client's, the server's)"""
    there = sorted(os.sched_getaffinity(0))
    return there[0], there[-1]


@contextlib.contextmanager
def serving(latency_ms: float, hostile_share: float = 0) -> Iterator[int]:
    """The port of a server that answers after so long; `hostile_share` of the items of packs wrongly."""
    server = subprocess.Popen(
        [sys.executable, str(HERE / "answering_server.py"), "0", str(latency_ms), str(hostile_share)],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: os.sched_setaffinity(0, {cores()[1]}),
    )
    assert server.stdout is not None
    try:
        yield int(server.stdout.readline().split()[-1])
    finally:
        server.terminate()
        server.wait()


def rowmill(*arguments: str) -> list[str]:
    """How the command line is started."""
    return [sys.executable, "-c", "from pipelines.cli import main; main()", *arguments]


def client_command(client: str, kind: str, folder: Path, source: Path, port: int, concurrency: int) -> list[str]:
    """How a client is started."""
    base = f"http://127.0.0.1:{port}/v1"
    target = str(folder / "answers.parquet")
    if client in DURABILITY:
        return rowmill("run", str(write_job(folder, kind, port, concurrency, DURABILITY[client])), "--quiet")
    if client == "sdk":
        return [sys.executable, str(HERE / "sdk_loop.py"), base, str(source), target, str(concurrency)]
    what, path = ("embeddings", "/embeddings") if kind == "embeddings" else ("chat", "/chat/completions")
    in_flight = str(32 if kind == "embeddings" else concurrency)
    return [sys.executable, str(HERE / "bare_loop.py"), what, base + path, str(source), target, in_flight]


def compared(
    kind: str,
    rows: int,
    clients: Mapping[str, int],
    latency_ms: float = 0,
    concurrency: int = 200,
    characters: int = 200,
) -> dict[str, list[Measured]]:
    """The runs of each client, each as often as it says, in turn."""
    found: dict[str, list[Measured]] = {client: [] for client in clients}
    with serving(latency_ms) as port:
        for turn in range(max(clients.values())):
            for client in (one for one, times in clients.items() if turn < times):
                with tempfile.TemporaryDirectory() as name:
                    folder = Path(name)
                    source = folder / "input.parquet"
                    write_input(source, rows, characters)
                    command = client_command(client, kind, folder, source, port, concurrency)
                    found[client].append(measured(command, rows, cores()[0]))
    return found


def median(runs: Sequence[Measured]) -> Measured:
    """The run in the middle by its rate, with the largest peak of all."""
    middle = sorted(runs, key=lambda run: run.rate)[len(runs) // 2]
    cpu = statistics.median(run.cpu_seconds for run in runs)
    return Measured(middle.rows, middle.seconds, cpu, max(run.peak_mb for run in runs))


def spread(runs: Sequence[Measured]) -> str:
    """The lowest and the highest rows/s."""
    rates = [run.rate for run in runs]
    return f"{min(rates):,.0f} to {max(rates):,.0f}" if len(rates) > 1 else ""


def machine() -> str:
    """The machine, its load and the versions, a line each."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())
    load = os.getloadavg()[0]
    kind = f"{model}, {platform.machine()}, {os.cpu_count()} cores; load before: {load:.1f}"
    named = ", ".join(
        f"{name} {version(name)}" for name in ("rowmill", "aiohttp", "uvloop", "orjson", "pyarrow", "openai")
    )
    return f"{kind}\nPython {platform.python_version()}, {named}"


def side_by_side(found: Mapping[str, Sequence[Measured]]) -> list[list[str]]:
    """A table: the head, then a line a client."""
    lines = [["client", "rows/s", "from, to", "× bare", "CPU s / 1,000 rows", "peak MB", "runs"]]
    bare = median(found["bare"]).rate if "bare" in found else None
    for client, runs in found.items():
        one = median(runs)
        ratio = "" if bare is None else f"{one.rate / bare:.2f}"
        lines.append(
            [
                client,
                f"{one.rate:,.0f}",
                spread(runs),
                ratio,
                f"{one.cpu_of_1000:.3f}",
                f"{one.peak_mb:.0f}",
                str(len(runs)),
            ]
        )
    return lines


def in_markdown(lines: Sequence[Sequence[str]]) -> str:
    """The table."""
    head, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return "\n".join([head, "|" + "---|" * len(lines[0]), *rest])


def as_installed() -> None:
    """Compile Rowmill beforehand, as pip does with what it installs."""
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for package in ("pipelines", "connectors"):
        compileall.compile_dir(HERE.parents[1] / package, quiet=1)


def main() -> None:
    """Run all clients in turn, so often, and print the table."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--kind", choices=["chat", "typed", "embeddings"], default="chat")
    said.add_argument("--rows", type=int, default=10_000)
    said.add_argument("--characters", type=int, default=200)
    said.add_argument("--latency-ms", type=float, default=0)
    said.add_argument("--concurrency", type=int, default=200)
    said.add_argument("--times", type=int, default=3)
    said.add_argument("--clients", default="bare,rowmill", help="Of bare, rowmill, rowmill-power, sdk.")
    args = said.parse_args()
    as_installed()
    clients = dict.fromkeys(args.clients.split(","), args.times)
    found = compared(args.kind, args.rows, clients, args.latency_ms, args.concurrency, args.characters)
    print(machine())
    print(f"{args.kind}, {args.rows:,} rows, {args.latency_ms:g} ms, {args.concurrency} in flight\n")
    print(in_markdown(side_by_side(found)))


if __name__ == "__main__":
    main()
