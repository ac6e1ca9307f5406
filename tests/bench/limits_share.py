"""How much of a provider's limits whole runs use, and how many of their requests it refuses.

    python tests/bench/limits_share.py                      # every scenario, about a minute and a half each
    python tests/bench/limits_share.py window-3000 two-runs --seconds 40

A server in a process of its own enforces requests or tokens a minute, in a sliding minute or a bucket that holds a
second's worth; what it let pass between second 5 and the end is compared with what it would have let pass.
"""

import argparse
import asyncio
import json
import multiprocessing
import random
import subprocess
import sys
import tempfile
import time
from collections import deque
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

LATENCY = 0.2
START = 5.0
"""Seconds after the first request from which on the share is counted."""


@dataclass
class Limit:
    """So many a minute, of requests or of tokens."""

    per_minute: int
    window: bool
    announced: deque[tuple[float, float]] = field(default_factory=deque)
    used: float = 0.0
    level: float = 0.0
    filled: float = 0.0

    def begin(self, now: float) -> None:
        self.level, self.filled = self.per_minute / 60, now

    def wait(self, now: float, amount: float) -> float:
        """Seconds until so much would pass; 0: now."""
        if self.window:
            while self.announced and self.announced[0][0] <= now - 60:
                self.used -= self.announced.popleft()[1]
            return 0.0 if self.used + amount <= self.per_minute else self.announced[0][0] + 60 - now + 0.001
        rate = self.per_minute / 60
        self.level = min(max(1.0, rate), self.level + (now - self.filled) * rate)
        self.filled = now
        return 0.0 if self.level >= min(amount, rate) else (min(amount, rate) - self.level) / rate

    def take(self, now: float, amount: float) -> None:
        self.announced.append((now, amount))
        self.used += amount
        self.level -= amount


@dataclass
class Scenario:
    """What the provider enforces, and what it announces to the runs."""

    requests: int | None = None
    tokens: int | None = None
    window: bool = True
    configured: bool = True
    """Whether rowmill.yaml names the limits."""
    headers: bool = False
    stated: bool = True
    """Whether a refusal says when to come back."""
    concurrency: int = 200
    runs: int = 1
    slots: int | None = None
    """Requests in flight that the key allows."""
    change: tuple[float, int] | None = None
    """(seconds, requests a minute from then on)"""


SCENARIOS = {
    "window-3000": Scenario(3000),
    "window-30000": Scenario(30000),
    "bucket-3000": Scenario(3000, window=False),
    "bucket-30000": Scenario(30000, window=False),
    "tokens-window": Scenario(tokens=600_000),
    "tokens-bucket": Scenario(tokens=600_000, window=False),
    "headers-30000": Scenario(30000, window=False, configured=False, headers=True),
    "learned-3000": Scenario(3000, window=False, configured=False, concurrency=64),
    "learned-silent-3000": Scenario(3000, window=False, configured=False, stated=False, concurrency=64),
    "learned-30000": Scenario(30000, window=False, configured=False),
    "lowered-headers": Scenario(30000, window=False, headers=True, change=(20, 15000)),
    "lowered-refusals": Scenario(30000, window=False, change=(20, 15000)),
    "two-runs": Scenario(30000, runs=2),
    "two-runs-tokens": Scenario(tokens=600_000, window=False, runs=2),
    "two-runs-slots": Scenario(slots=40, runs=2),
}


def serve(scenario: Scenario, pipe: Connection) -> None:
    """The provider; on any message it answers with what it saw."""
    from aiohttp import web

    limits = {
        name: Limit(per_minute, scenario.window)
        for name, per_minute in (("requests", scenario.requests), ("tokens", scenario.tokens))
        if per_minute
    }
    passed: list[tuple[float, float]] = []
    refused: list[float] = []
    began: list[float] = []
    dice = random.Random(1)
    flight = {"now": 0, "most": 0}

    async def answer(request: web.Request) -> web.Response:
        await request.read()
        now = time.monotonic()
        if not began:
            began.append(now)
            for limit in limits.values():
                limit.begin(now)
        if scenario.change and now - began[0] >= scenario.change[0]:
            limits["requests"].per_minute = scenario.change[1]
        made = dice.randint(20, 120)
        amounts = {"requests": 1.0, "tokens": 10.0 + made}
        waits = [limit.wait(now, amounts[name]) for name, limit in limits.items()]
        headers = {f"x-ratelimit-limit-{name}": str(limit.per_minute) for name, limit in limits.items()}
        if not scenario.headers:
            headers = {}
        if waits and max(waits) > 0:
            refused.append(now - began[0])
            if scenario.stated:
                headers["retry-after-ms"] = str(int(max(waits) * 1000) + 1)
            return web.json_response(
                {"error": {"message": "slow down", "code": "rate_limit_exceeded"}}, status=429, headers=headers
            )
        for name, limit in limits.items():
            limit.take(now, amounts[name])
        passed.append((now - began[0], amounts["tokens"]))
        flight["now"] += 1
        flight["most"] = max(flight["most"], flight["now"])
        try:
            await asyncio.sleep(LATENCY * dice.uniform(0.5, 1.5))
        finally:
            flight["now"] -= 1
        message = {"role": "assistant", "content": "yes"}
        return web.json_response(
            {
                "id": "c", "object": "chat.completion", "created": 1, "model": "m",
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": {"prompt_tokens": 10, "completion_tokens": made, "total_tokens": 10 + made},
            },
            headers=headers,
        )  # fmt: skip

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        pipe.send(runner.addresses[0][1])
        await asyncio.to_thread(pipe.recv)
        pipe.send((passed, refused, flight["most"]))

    asyncio.run(run())


def measure(name: str, scenario: Scenario, seconds: float) -> str:
    """One line: the share of the limit that was used, and what was refused."""
    ours, theirs = multiprocessing.Pipe()
    server = multiprocessing.get_context("spawn").Process(target=serve, args=(scenario, theirs), daemon=True)
    server.start()
    port = ours.recv()
    with tempfile.TemporaryDirectory() as folder:
        runs = [started(Path(folder), f"job-{number}", scenario, port, seconds) for number in range(scenario.runs)]
        time.sleep(seconds + 4)
        for run in runs:
            run.kill()
            run.wait()
    ours.send("counts?")
    passed, refused, most = ours.recv()
    server.terminate()
    return format_scenario(name, scenario, passed, refused, most)


def started(folder: Path, job: str, scenario: Scenario, port: int, seconds: float) -> "subprocess.Popen[bytes]":
    """One run with more rows than it can ask for."""
    limits: dict[str, Any] = {}
    if scenario.configured:
        limits = {"requests_per_minute": scenario.requests, "tokens_per_minute": scenario.tokens}
    limits["concurrency"] = scenario.slots
    limits = {key: value for key, value in limits.items() if value is not None}
    provider = {"base_url": f"http://127.0.0.1:{port}/v1", "limits": limits}
    (folder / "rowmill.yaml").write_text(json.dumps({"providers": {"test": provider}}))
    rows = int((seconds + 20) * 600)
    (folder / f"{job}.csv").write_text("id,text\n" + "".join(f"{n},{job} {n}\n" for n in range(rows)))
    steps = [
        {
            "name": "a", "endpoint": "chat", "provider": "test", "model": "m",
            "messages": [{"user": "{{ text }}"}], "params": {"max_tokens": 200},
        }
    ]  # fmt: skip
    written = {
        "name": job, "source": {"csv": f"{job}.csv", "key": "id"}, "steps": steps, "sink": {"parquet": f"out-{job}"},
        "limits": {"concurrency": scenario.concurrency},
    }  # fmt: skip
    path = folder / f"{job}.yaml"
    path.write_text(json.dumps(written))
    command = [sys.executable, "-c", "from pipelines.cli import main; main()", "run", str(path), "--quiet", "--json"]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL)


def format_scenario(
    name: str, scenario: Scenario, passed: list[tuple[float, float]], refused: list[float], most: int
) -> str:
    """What the server saw, in words."""
    end = passed[-1][0]
    counted = [(at, tokens) for at, tokens in passed if at >= START]
    words: list[str] = []
    if scenario.change is not None and scenario.requests is not None:
        at, later = scenario.change
        before = sum(1 for when, _ in passed if START <= when < at) / (scenario.requests / 60 * (at - START))
        after = sum(1 for when, _ in passed if when >= at + START) / (later / 60 * (end - at - START))
        words.append(f"used {before:.1%} of the limit, {after:.1%} of the lowered one from {START:.0f} s after")
    elif scenario.requests is not None:
        words.append(
            f"used {len(counted) / (scenario.requests / 60 * (end - START)):.1%} of {scenario.requests:,} requests"
        )
    if scenario.tokens is not None:
        share = sum(tokens for _, tokens in counted) / (scenario.tokens / 60 * (end - START))
        words.append(f"used {share:.1%} of {scenario.tokens:,} tokens")
    if scenario.slots is not None:
        ideal = scenario.slots / LATENCY * (end - START)
        words.append(f"used {len(counted) / ideal:.1%} of {scenario.slots} in flight, at most {most}")
    total = len(passed) + len(refused)
    words.append(f"refused {len(refused):,} of {total:,} ({len(refused) / total:.2%}) in {end:.0f} s")
    return f"{name:<22}{'; '.join(words)}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("scenario", nargs="*", help=f"of {', '.join(SCENARIOS)}; default: all")
    parser.add_argument("--seconds", type=float, default=75)
    chosen = parser.parse_args()
    for name in chosen.scenario or SCENARIOS:
        print(measure(name, SCENARIOS[name], chosen.seconds), flush=True)


if __name__ == "__main__":
    main()
