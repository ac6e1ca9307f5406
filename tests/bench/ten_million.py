"""Ten million rows through one job: time, memory, bytes written to the disk, and the rate from the first to the last.

    python tests/bench/ten_million.py                   # about an hour on two cores, 10 GB of disk at TMPDIR
    python tests/bench/ten_million.py --rows 1000000    # fewer

Embeddings of 8 numbers, 64 a request, of a server that answers at once; the server has one core, Rowmill the other.
Linux only: /proc/PID/stat.
"""

import argparse
import os
import sqlite3
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from all import first_request
from speed import as_installed, cores, in_markdown, peak_of, rowmill, serving

CHUNK = 100_000
PARTS = 10
"""Lines of the table of rates."""


@dataclass(frozen=True, slots=True)
class Finished:
    """A command that has ended."""

    seconds: float
    cpu_seconds: float
    peak_mb: float
    written_mb: float
    """What the kernel was asked to write to a disk."""

    def cells(self) -> list[str]:
        return [
            f"{self.seconds:,.1f}",
            f"{self.cpu_seconds:,.1f}",
            f"{self.peak_mb:,.0f}",
            f"{self.written_mb:,.0f}",
        ]


def write_rows(path: Path, rows: int, changed_share: float = 0) -> None:
    """Rows of a short text each, no two alike; the texts of a share of them, spread evenly, are changed."""
    every = round(1 / changed_share) if changed_share else rows + 1
    with pq.ParquetWriter(path, pa.schema([("id", pa.int64()), ("text", pa.string())])) as writer:
        for start in range(0, rows, CHUNK):
            ids = range(start, min(rows, start + CHUNK))
            texts = [f"row {key} {'changed' if key % every == every - 1 else 'as it was'}" for key in ids]
            writer.write_table(pa.table({"id": pa.array(ids, pa.int64()), "text": texts}))


def write_job(folder: Path, port: int) -> Path:
    (folder / "rowmill.yaml").write_text(f'providers: {{bench: {{base_url: "http://127.0.0.1:{port}/v1"}}}}\n')
    job = folder / "bench.yaml"
    job.write_text(
        "name: bench\nsource: {parquet: input.parquet, key: id}\nlimits: {concurrency: 32}\n"
        "steps: [{provider: bench, name: vector, endpoint: embeddings, model: text-embedding-3-small, "
        'input: "{{ text }}", params: {dimensions: 8}}]\nsink: {parquet: out}\n'
    )
    return job


def finished(*arguments: str, ledger: Path | None = None, reached: "list[Reached] | None" = None) -> Finished:
    """Run a command to its end; note in `reached` when `ledger` had how many answers."""
    began = time.perf_counter()
    process = subprocess.Popen(
        rowmill(*arguments), stdout=subprocess.DEVNULL, preexec_fn=lambda: os.sched_setaffinity(0, {cores()[0]})
    )
    peak, ended = 0.0, threading.Event()

    def observe() -> None:
        nonlocal peak
        while not ended.wait(0.5):
            peak = max(peak, peak_of(process.pid))
            if ledger is not None and reached is not None:
                with suppress(sqlite3.OperationalError, FileNotFoundError, ProcessLookupError):
                    reached.append(Reached(answers_of(ledger), time.perf_counter() - began, cpu_of(process.pid)))

    observer = threading.Thread(target=observe)
    observer.start()
    _, status, used = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - began
    ended.set()
    observer.join()
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"rowmill {' '.join(arguments)} ended with {process.returncode}")
    return Finished(seconds, used.ru_utime + used.ru_stime, peak, used.ru_oublock * 512 / 1e6)


@dataclass(frozen=True, slots=True)
class Reached:
    """How many answers were in the ledger after so long."""

    answers: int
    seconds: float
    cpu_seconds: float


def answers_of(ledger: Path) -> int:
    with closing(sqlite3.connect(f"file:{ledger}?mode=ro", uri=True)) as connection:
        ((last,),) = connection.execute("select max(id) from answers")
    return last or 0


def cpu_of(pid: int) -> float:
    ticks = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13]
    return sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def rates(reached: Sequence[Reached], rows: int) -> Iterator[list[str]]:
    """A line for each tenth of the rows."""
    before = Reached(0, 0, 0)
    for part in range(1, PARTS + 1):
        after = next((one for one in reached if one.answers >= rows * part // PARTS), reached[-1])
        count = after.answers - before.answers
        if count:
            rate, cpu = count / (after.seconds - before.seconds), after.cpu_seconds - before.cpu_seconds
            yield [f"{after.answers:,}", f"{rate:,.0f}", f"{cpu * 1e6 / count:.1f}"]
        before = after


def size_mb(folder: Path, pattern: str) -> float:
    return sum(file.stat().st_size for file in folder.glob(pattern) if file.is_file()) / 1e6


def show(lines: Sequence[Sequence[str]]) -> None:
    print(f"\n{in_markdown(lines)}", flush=True)


def main() -> None:
    """Measure and print each table as soon as it is there."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("--rows", type=int, default=10_000_000)
    rows = said.parse_args().rows
    as_installed()
    head = [f"{rows:,} rows", "seconds", "CPU s", "peak MB", "MB written"]
    with serving(0) as port, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source, ledger = folder / "input.parquet", folder / ".rowmill/ledger.sqlite"
        write_rows(source, rows)
        job = str(write_job(folder, port))
        show([head, ["plan", *finished("plan", job).cells()]])
        reached: list[Reached] = []
        first = finished("run", job, "--quiet", ledger=ledger, reached=reached)
        show([head, ["run", *first.cells()]])
        show([["answers", "rows/s", "CPU s a million"], *rates(reached, rows)])
        kept = [size_mb(folder, ".rowmill/ledger.sqlite*"), size_mb(folder, "out/**/*")]
        parts = [file.stat().st_size / 1e6 for file in (folder / "out/results").glob("*.parquet")]
        show(
            [
                ["kept", "MB"],
                ["ledger", f"{kept[0]:,.0f}"],
                ["tables", f"{kept[1]:,.0f}"],
                [f"parts of results: {len(parts)}, the largest", f"{max(parts):,.0f}"],
                ["bytes written for each byte kept", f"{first.written_mb / sum(kept):.1f}"],
            ]
        )
        lines = [
            head,
            ["plan with nothing to do", *finished("plan", job).cells()],
            ["run with nothing to do", *finished("run", job, "--quiet").cells()],
        ]
        write_rows(source, rows, changed_share=0.01)
        seconds, cpu = first_request(lambda port: write_job(folder, port))
        lines.append(["1 % changed, to the first request", f"{seconds:.1f}", f"{cpu:.1f}", "", ""])
        write_job(folder, port)
        lines.append(["run of 1 % changed rows", *finished("run", job, "--quiet").cells()])
        commands = {
            "status": ["status", str(folder)],
            "errors": ["errors", job],
            "show": ["show", job, str(rows // 2)],
            "report": ["report", job, "-o", str(folder / "report.html")],
            "rebuild": ["rebuild", job],
            "ledger prune": ["ledger", "prune", "--workspace", str(folder), "--older-than", "0h"],
        }
        try:
            for name, arguments in commands.items():
                lines.append([name, *finished(*arguments).cells()])
        finally:
            show(lines)


if __name__ == "__main__":
    main()
