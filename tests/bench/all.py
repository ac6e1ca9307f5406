"""Every benchmark, each a Markdown table: speed, memory, a million rows, start.

    python tests/bench/all.py                       # all, a quarter of an hour on a quiet machine with two cores
    python tests/bench/all.py --quick               # a tenth of the rows, once each: do they work
    python tests/bench/all.py chat typed            # some

chat        rows/s of a bare aiohttp loop, the official SDK and Rowmill; a server that answers at once; 10,000 rows
chat-100000 the same, 100,000 rows
latency     100,000 rows; 200 and 500 in flight at 200 ms, 2,000 at 1 s; share of concurrency / latency, cores used,
            the median wait of a request for the ledger
embeddings  100,000 texts, 1,536 float32, 64 a request
disk        a gigabyte of vectors written as a part, next to as many plain bytes
packed      20 rows in a request next to one; 100,000 rows of a server that gets packs wrong
checked     100,000 rows with two checks of each answer, next to none
pieces      vectors of the pieces of rows, 20 a row, next to a bare loop over as many rows
watched     1,000 requests/s with `rowmill watch` and two open pages, next to none
typed       ten nested fields, next to plain text
memory      the largest resident set of runs of many kinds (extra `rowmill[media]`)
ledger      a million answers: bytes written for each byte kept, CPU ms an answer, slowest write; a disk at TMPDIR
million     a million rows: plan, resume at 90 %, a run with nothing to do, the ledger
split       texts in pieces of 400 tokens with an overlap of 40, next to one count of their tokens; MB a CPU second
start       CPU seconds of --help and validate; from start to the first request
"""

import argparse
import contextlib
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
import wave
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from urllib.parse import urlsplit

import pyarrow as pa
import pyarrow.parquet as pq
from answering_server import ITEM_CHARACTERS
from speed import (
    HERE,
    STEPS,
    Measured,
    as_installed,
    client_command,
    compared,
    cores,
    in_markdown,
    machine,
    measured,
    median,
    rowmill,
    serving,
    side_by_side,
    spread,
    write_input,
    write_job,
)

from connectors.tokens import count_tokens
from pipelines.transforms.splitter import split_text

Lines = list[list[str]]
PIECES = 20
"""Of a row."""


@dataclass(frozen=True, slots=True)
class Size:
    """How much of it."""

    times: int
    share: float
    """Of the rows."""

    def of(self, rows: int) -> int:
        return max(1, int(rows * self.share))


def chat(size: Size) -> Lines:
    return side_by_side(compared("chat", size.of(10_000), dict.fromkeys(("bare", "sdk", "rowmill"), size.times)))


def chat_100000(size: Size) -> Lines:
    return side_by_side(compared("chat", size.of(100_000), {"bare": size.times, "sdk": 1, "rowmill": size.times}))


def latency(size: Size) -> Lines:
    lines = [["in flight", "ms", "client", "rows/s", "of concurrency / latency", "cores", "peak MB", "waits, ms"]]
    for concurrency, latency_ms in ((200, 200), (500, 200), (2000, 1000)):
        clients = {"bare": 1, "rowmill": 1}
        found = compared("chat", size.of(100_000), clients, latency_ms, concurrency)
        waits = {"rowmill": f"{ledger_wait(size.of(30_000), latency_ms, concurrency):.1f}"}
        for client, runs in found.items():
            one = median(runs)
            used, share = one.cpu_seconds / one.seconds, one.rate / (concurrency * 1000 / latency_ms)
            lines.append(
                [
                    str(concurrency), str(latency_ms), client, f"{one.rate:,.0f}", f"{share:.1%}", f"{used:.2f}",
                    f"{one.peak_mb:.0f}", waits.get(client, ""),
                ]
            )  # fmt: skip
    return lines


def ledger_wait(rows: int, latency_ms: int, concurrency: int) -> float:
    """Median of the milliseconds that a request waits for the ledger, before it is sent or after its reply."""
    with serving(latency_ms) as port, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "input.parquet", rows, 200)
        job = str(write_job(folder, "chat", port, concurrency))
        command = [sys.executable, str(HERE / "ledger_waits.py"), "run", job, "--quiet"]
        printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return float(printed)


def embeddings(size: Size) -> Lines:
    return side_by_side(compared("embeddings", size.of(100_000), {"bare": size.times, "rowmill": size.times}))


def disk(size: Size) -> Lines:
    from connectors.tables.parquet_parts import PartWriter

    dimensions, rows = 1536, 4096
    chosen = random.Random(1)
    numbers = array("f", (chosen.random() for _ in range(rows * dimensions))).tobytes()
    values = pa.Array.from_buffers(pa.float32(), rows * dimensions, [None, pa.py_buffer(numbers)])
    vectors = pa.FixedSizeListArray.from_arrays(values, dimensions)
    table = pa.table([pa.array(range(rows), pa.int64()), vectors], names=["id", "vector"])
    blocks = size.of(40)
    nbytes = blocks * len(numbers)

    def raw(path: Path) -> None:
        with path.open("wb") as file:
            for _ in range(blocks):
                file.write(numbers)

    def part(path: Path) -> None:
        with PartWriter(path, table.schema) as writer:
            for _ in range(blocks):
                writer.write(table)

    lines = [["written as", "MB of vectors", "MB/s", "CPU s", "MB on disk"]]
    for what, write in (("bytes as they are", raw), ("a part of results", part)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "file"
            began, cpu = time.perf_counter(), time.process_time()
            write(path)
            with path.open("rb") as file:
                os.fsync(file.fileno())
            seconds = time.perf_counter() - began
            held = path.stat().st_size / 1e6
        rate, used = nbytes / 1e6 / seconds, time.process_time() - cpu
        lines.append([what, f"{nbytes / 1e6:,.0f}", f"{rate:,.0f}", f"{used:.1f}", f"{held:,.0f}"])
    return lines


def pieces(size: Size) -> Lines:
    """Runs of both clients in turn."""
    rows, found = size.of(5_000) * PIECES, dict[str, list[Measured]](bare=[], rowmill=[])
    with serving(0) as port:
        for _ in range(size.times):
            with tempfile.TemporaryDirectory() as name:
                folder = Path(name)
                source = folder / "input.parquet"
                write_input(source, rows, 200)
                command = client_command("bare", "embeddings", folder, source, port, 200)
                found["bare"].append(measured(command, rows, cores()[0]))
                job = write_job(folder, "embeddings", port, 200)
                each = "steps: [{name: piece, each: {list: pieces}}, "
                job.write_text(job.read_text().replace("steps: [", each).replace("{{ text }}", "{{ piece }}"))
                texts = pq.read_table(source).column("text").combine_chunks()
                ends = pa.array(range(0, rows + 1, PIECES), pa.int32())
                ids = pa.array(range(rows // PIECES), pa.int64())
                pq.write_table(pa.table({"id": ids, "pieces": pa.ListArray.from_arrays(ends, texts)}), source)
                found["rowmill"].append(measured(rowmill("run", str(job), "--quiet"), rows, cores()[0]))
    return side_by_side(found)


def watched(size: Size) -> Lines:
    """Runs with and without open pages, in turn."""
    rows, runs = size.of(20_000), dict[int, list[Measured]]()
    for _ in range(size.times):
        for pages in (0, 2):
            with serving(200) as port, tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as opened:
                folder = Path(name)
                write_input(folder / "input.parquet", rows, 200)
                job = write_job(folder, "chat", port, 200)
                if pages:
                    opened.enter_context(open_pages(folder, ["/", "/jobs/bench"]))
                one = measured(rowmill("run", str(job), "--quiet"), rows, cores()[0])
                runs.setdefault(pages, []).append(one)
    lines = [["open pages", "rows/s", "from, to", "× without", "CPU s / 1,000 rows", "× without"]]
    plain = median(runs[0])
    for pages, found in runs.items():
        one = median(found)
        rate, cpu = one.rate / plain.rate, one.cpu_of_1000 / plain.cpu_of_1000
        lines.append(
            [str(pages), f"{one.rate:,.0f}", spread(found), f"{rate:.3f}", f"{one.cpu_of_1000:.3f}", f"{cpu:.3f}"]
        )
    return lines


@contextlib.contextmanager
def open_pages(folder: Path, pages: Sequence[str]) -> Iterator[None]:
    """Serve the live page of a workspace on the server's core, with a reader of each page's events."""
    command = rowmill("watch", str(folder), "--port", "0")
    watch = subprocess.Popen(
        command, stderr=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {cores()[1]})
    )
    assert watch.stderr is not None
    address = urlsplit(watch.stderr.readline().split()[-1])
    cookie = f"rowmill_{address.port}={address.query.removeprefix('token=')}"

    def read(page: str) -> None:
        connection = HTTPConnection("127.0.0.1", address.port)
        connection.request("GET", f"/events?page={page}", headers={"Cookie": cookie})
        with contextlib.suppress(OSError, HTTPException):
            reply = connection.getresponse()
            assert reply.status == 200, reply.status
            while reply.read1(65536):
                pass

    readers = [threading.Thread(target=read, args=(page,), daemon=True) for page in pages]
    for reader in readers:
        reader.start()
    try:
        yield
    finally:
        watch.terminate()
        watch.wait()


def typed(size: Size) -> Lines:
    lines = [["answers", "rows/s", "from, to", "× plain text", "CPU s / 1,000 rows"]]
    plain: Measured | None = None
    for kind, name in (("chat", "plain text"), ("typed", "ten fields, nested")):
        runs = compared(kind, size.of(10_000), {"rowmill": size.times})["rowmill"]
        one = median(runs)
        plain = plain or one
        figures = [f"{one.rate:,.0f}", spread(runs), f"{one.rate / plain.rate:.2f}", f"{one.cpu_of_1000:.3f}"]
        lines.append([name, *figures])
    return lines


def checked(size: Size) -> Lines:
    """Runs with and without checks, in turn."""
    rows, runs = size.of(100_000), dict[str, list[Measured]]()
    for _ in range(size.times):
        for kind in ("chat", "checked"):
            runs.setdefault(kind, []).extend(compared(kind, rows, {"rowmill": 1})["rowmill"])
    lines = [["run", "rows", "rows/s", "from, to", "× without", "CPU s / 1,000 rows", "× without"]]
    plain = median(runs["chat"])
    for kind, name in (("chat", "without a check"), ("checked", "two checks")):
        one = median(runs[kind])
        rates = [f"{one.rate:,.0f}", spread(runs[kind]), f"{one.rate / plain.rate:.2f}"]
        cpu = [f"{one.cpu_of_1000:.3f}", f"{one.cpu_of_1000 / plain.cpu_of_1000:.2f}"]
        lines.append([name, f"{rows:,}", *rates, *cpu])
    return lines


def packed(size: Size) -> Lines:
    """Packs next to single requests; then every row's answer of a hostile server is checked."""
    rows = size.of(10_000)
    lines = [["run", "rows", "requests", "rows/s", "from, to", "× single", "CPU s / 1,000 rows", "peak MB"]]
    single: Measured | None = None
    for kind, name in (("chat", "single requests"), ("packed", "20 rows a request")):
        runs, requests = [], 0
        for _ in range(size.times):
            with serving(0) as port, tempfile.TemporaryDirectory() as folder:
                one, requests = packed_run(Path(folder), kind, rows, port)
                runs.append(one)
        middle = median(runs)
        single = single or middle
        lines.append(packed_line(name, runs, requests, f"{middle.rate / single.rate:.1f}"))
    rows = size.of(100_000)
    with serving(0, hostile_share=0.05) as port, tempfile.TemporaryDirectory() as folder:
        one, requests = packed_run(Path(folder), "packed", rows, port)
        check_answers(Path(folder), rows)
        lines.append(packed_line("20 rows a request, hostile server", [one], requests, ""))
    return lines


def packed_run(folder: Path, kind: str, rows: int, port: int) -> tuple[Measured, int]:
    """(one run, its exchanges)."""
    write_input(folder / "input.parquet", rows, 200)
    job = write_job(folder, kind, port, 200)
    one = measured(rowmill("run", str(job), "--quiet"), rows, cores()[0])
    usage = pq.read_table(folder / "out" / "usage", columns=["http_status"])
    return one, usage.num_rows


def packed_line(name: str, runs: Sequence[Measured], requests: int, ratio: str) -> list[str]:
    one = median(runs)
    figures = [f"{one.rows:,}", f"{requests:,}", f"{one.rate:,.0f}", spread(runs), ratio, f"{one.cpu_of_1000:.3f}"]
    return [name, *figures, f"{one.peak_mb:.0f}"]


def check_answers(folder: Path, rows: int) -> None:
    """Exit if a row has not its own answer."""
    results = pq.read_table(folder / "out" / "results", columns=["id", "answer"]).sort_by("id")
    wanted = [(key, f"Label this: {key}: The food was good"[:ITEM_CHARACTERS]) for key in range(rows)]
    found = list(zip(results["id"].to_pylist(), results["answer"].to_pylist(), strict=True))
    if found != wanted:
        wrong = next((pair for pair in zip(found, wanted, strict=False) if pair[0] != pair[1]), None)
        raise SystemExit(f"{len(found):,} of {rows:,} rows; the first wrong one: {wrong}")


def memory(size: Size) -> Lines:
    kinds: Sequence[tuple[str, str, int, int]] = (
        ("chat, 10,000 rows", "chat", 10_000, 200),
        ("chat, 100,000 rows", "chat", 100_000, 200),
        ("embeddings, 20,000 texts", "embeddings", 20_000, 200),
        ("chat, 1,000 rows of 1 MB, 50 in flight", "chat", 1_000, 1_000_000),
        ("pictures made, 500 of 1.5 MB, 50 in flight", "images", 500, 100),
        ("recordings transcribed, 500 of 2 MB, 50 in flight", "audio", 500, 100),
    )
    lines = [["run", "peak MB", "rows/s"]]
    for name, kind, rows, characters in kinds:
        with serving(0) as port, tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch)
            write_input(folder / "input.parquet", size.of(rows), characters)
            if kind == "audio":
                write_recordings(folder, size.of(rows))
            large = characters > 200 or kind in ("images", "audio")
            job = write_job(folder, kind, port, 50 if large else 200)
            one = measured(rowmill("run", str(job), "--quiet"), size.of(rows), cores()[0])
        lines.append([name, f"{one.peak_mb:.0f}", f"{one.rate:,.0f}"])
    for name, steps in CHILDREN.items():
        lines.append([name, *large_row(steps, size.of(100_000))])
    return lines


CHILDREN = {
    "one row with 100,000 children, chat and a fold": f"{{provider: bench, name: answer, {STEPS['chat']}}}, "
    "{name: all, fold: {answers: list(answer order by text_index)}}",
    "one row with 100,000 children, vectors": f"{{provider: bench, name: answer, {STEPS['embeddings']}}}",
}
"""Steps after an `each` of texts."""


def large_row(steps: str, children: int) -> list[str]:
    """(peak MB, rows/s) of one source row with so many children."""
    with serving(0) as port, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        texts = [f"{number}: The food was good, the service slow, and we come again." for number in range(children)]
        pq.write_table(pa.table({"id": [1], "texts": [texts]}), folder / "input.parquet")
        job = write_job(folder, "chat", port, 200)
        before, rest = job.read_text().split("steps: ")
        after = rest.split("\n", 1)[1]
        job.write_text(f"{before}steps: [{{name: text, each: {{list: texts}}}}, {steps}]\n{after}")
        one = measured(rowmill("run", str(job), "--quiet"), children, cores()[0])
    return [f"{one.peak_mb:.0f}", f"{one.rate:,.0f}"]


def write_recordings(folder: Path, rows: int) -> None:
    """As many recordings of a minute, all different, named by the input's column."""
    chosen = random.Random(1)
    names = [f"{number}.wav" for number in range(rows)]
    for name in names:
        with wave.open(str(folder / name), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(16_000)
            file.writeframes(chosen.randbytes(1_920_000))
    pq.write_table(pa.table({"id": range(rows), "text": names}), folder / "input.parquet")


def million(size: Size) -> Lines:
    rows = size.of(1_000_000)
    lines = [["of 1,000,000 rows" if size.share == 1 else f"of {rows:,} rows", "seconds", "CPU s", "peak MB"]]

    def add(name: str, one: Measured) -> None:
        lines.append([name, f"{one.seconds:.1f}", f"{one.cpu_seconds:.1f}", f"{one.peak_mb:.0f}"])

    with serving(0) as port, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "input.parquet", rows, 200)
        job, core = str(write_job(folder, "chat", port, 200)), cores()[0]
        add("plan", measured(rowmill("plan", job), rows, core))
        limited = str(rows * 9 // 10)
        add("run of the first 90 %", measured(rowmill("run", job, "--quiet", "--limit", limited), rows, core))
        seconds, cpu = first_request(lambda port: write_job(folder, "chat", port, 200))
        lines.append(["resume, to the first request", f"{seconds:.1f}", f"{cpu:.1f}", ""])
        write_job(folder, "chat", port, 200)
        add("run of the rest", measured(rowmill("run", job, "--quiet"), rows, core))
        add("run with nothing to do", measured(rowmill("run", job, "--quiet"), rows, core))
        ledger = sum(file.stat().st_size for file in (folder / ".rowmill").glob("ledger.sqlite*"))
        lines.append([f"the ledger: {ledger / 1e6:,.0f} MB, {ledger / rows:,.0f} bytes a row", "", "", ""])
        parts = [file.stat().st_size for file in (folder / "out/results").glob("*.parquet")]
        lines.append([f"results: {len(parts)} parts, {sum(parts) / 1e6:,.0f} MB", "", "", ""])
    return lines


def ledger(size: Size) -> Lines:
    command = [sys.executable, str(HERE / "ledger_writes.py"), str(size.of(1_000_000))]
    printed = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.split("\t") for line in printed.splitlines()]


def first_request(write: Callable[[int], Path]) -> tuple[float, float]:
    """(seconds, CPU seconds) from the start of a run to its first request; the run is killed then.

    `write` makes the job file for a provider at this port.
    """
    with socket.create_server(("127.0.0.1", 0)) as server:
        job = write(server.getsockname()[1])
        began = time.perf_counter()
        core = cores()[0]
        process = subprocess.Popen(
            rowmill("run", str(job), "--quiet"), preexec_fn=lambda: os.sched_setaffinity(0, {core})
        )
        server.settimeout(300)
        connection, _ = server.accept()
        connection.recv(1)
        seconds = time.perf_counter() - began
        ticks = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[11:13]
        process.kill()
        process.wait()
        connection.close()
    return seconds, sum(map(int, ticks)) / os.sysconf("SC_CLK_TCK")


def split(size: Size) -> Lines:
    lines = [["text", "MB/s, counted once", "MB/s, split", "pieces"]]
    chosen = random.Random(1)
    words = ["".join(chosen.choices("etaoinshrdlu", k=chosen.randint(1, 9))) for _ in range(5000)]

    def sentences(count: int) -> str:
        return " ".join(" ".join(chosen.choices(words, k=15)).capitalize() + "." for _ in range(count))

    ideographs = "".join(map(chr, range(0x4E00, 0x5200)))
    texts = {
        "paragraphs of 8 sentences": "\n\n".join(sentences(8) for _ in range(size.of(3000))),
        "one line without a full stop": " ".join(chosen.choices(words, k=size.of(300_000))),
        "one word of ideographs": "".join(chosen.choices(ideographs, k=size.of(300_000))),
        "one word of one letter": "x" * size.of(1_000_000),
    }
    for name, text in texts.items():
        megabytes = len(text.encode()) / 1e6
        list(split_text(text[:1000], 400, 40))
        began = time.process_time()
        count_tokens(text, "gpt-4o")
        counted = time.process_time() - began
        began = time.process_time()
        pieces = sum(1 for _ in split_text(text, 400, 40))
        seconds = time.process_time() - began
        lines.append([name, f"{megabytes / counted:.1f}", f"{megabytes / seconds:.1f}", f"{pieces:,}"])
    return lines


def start(size: Size) -> Lines:
    lines = [["what", "seconds", "CPU s"]]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_input(folder / "input.parquet", 1000, 200)
        job = str(write_job(folder, "chat", 9, 200))
        for name, arguments in (("rowmill --help", ["--help"]), ("rowmill validate", ["validate", job])):
            runs = [measured(rowmill(*arguments), 1, cores()[0]) for _ in range(size.times)]
            one = median(runs)
            lines.append([name, f"{one.seconds:.2f}", f"{one.cpu_seconds:.2f}"])
        firsts = sorted(first_request(lambda port: write_job(folder, "chat", port, 200)) for _ in range(size.times))
        seconds, cpu = firsts[len(firsts) // 2]
        lines.append(["rowmill run, to its first request", f"{seconds:.2f}", f"{cpu:.2f}"])
    return lines


ALL: dict[str, Callable[[Size], Lines]] = {
    "chat": chat,
    "chat-100000": chat_100000,
    "latency": latency,
    "embeddings": embeddings,
    "disk": disk,
    "packed": packed,
    "checked": checked,
    "pieces": pieces,
    "watched": watched,
    "typed": typed,
    "memory": memory,
    "ledger": ledger,
    "million": million,
    "split": split,
    "start": start,
}


def main() -> None:
    """Measure and print; long benchmarks report on stderr that they are running."""
    said = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    said.add_argument("names", nargs="*", metavar="NAME", help=f"Of {', '.join(ALL)}; none: all.")
    said.add_argument("--quick", action="store_true")
    args = said.parse_args()
    unknown = sorted(set(args.names).difference(ALL))
    if unknown:
        raise SystemExit(f"{', '.join(unknown)}: no such benchmark; known here: {', '.join(ALL)}")
    as_installed()
    size = Size(1, 0.1) if args.quick else Size(3, 1.0)
    print(machine())
    for name in args.names or ALL:
        print(f"{name} ...", file=sys.stderr)
        print(f"\n**{name}**\n\n{in_markdown(ALL[name](size))}", flush=True)


if __name__ == "__main__":
    main()
