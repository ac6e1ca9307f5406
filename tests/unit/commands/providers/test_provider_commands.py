"""`rowmill models`, `files` and `batches`: tables, JSON lines, and a provider's errors in one line."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from connectors.emulator.server import EmulatorOptions, EmulatorServer
from tests.conftest import Cli

LINE = {
    "custom_id": "a",
    "method": "POST",
    "url": "/v1/chat/completions",
    "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]},
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[EmulatorServer]:
    """A provider `box` that accepts one key, in the workspace of the current folder."""
    with EmulatorServer(EmulatorOptions(api_key="secret")) as running:
        (tmp_path / "rowmill.yaml").write_text(
            f'providers: {{box: {{base_url: "{running.base_url}", api_key_env: BOX_KEY}}}}\n'
        )
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("BOX_KEY", "secret")
        yield running


def objects(cli: Cli) -> list[dict[str, Any]]:
    return [json.loads(line) for line in cli.out.splitlines()]


def upload(cli: Cli, *lines: dict[str, Any]) -> str:
    """Upload these lines and return the id of the file."""
    Path("requests.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli("files", "upload", "requests.jsonl", "--provider", "box", "--json") == 0
    (item,) = objects(cli)
    return str(item["id"])


def test_models_are_listed_and_shown(server: EmulatorServer, cli: Cli) -> None:
    assert cli("models", "list", "--provider", "box") == 0
    assert "gpt-4o-mini" in cli.out
    assert cli("models", "list", "--provider", "box", "--json") == 0
    assert "text-embedding-3-small" in {item["id"] for item in objects(cli)}
    assert cli("models", "show", "gpt-4o-mini", "--provider", "box", "--json") == 0
    assert objects(cli)[0]["object"] == "model"
    assert cli("models", "show", "gpt-4o-mini", "--provider", "box") == 0
    assert "2023-06-16" in cli.out


def test_a_file_is_uploaded_and_downloaded_unchanged(server: EmulatorServer, cli: Cli, tmp_path: Path) -> None:
    name = upload(cli, LINE)
    content = Path("requests.jsonl").read_text()
    assert cli("files", "list", "--provider", "box", "--json") == 0
    (item,) = objects(cli)
    assert (item["id"], item["filename"], item["purpose"], item["bytes"]) == (
        name, "requests.jsonl", "batch", len(content),
    )  # fmt: skip
    assert cli("files", "list", "--provider", "box", "--purpose", "vision") == 0
    assert cli.out == "box has no files\n"
    assert cli("files", "show", name, "--provider", "box") == 0
    assert "requests.jsonl" in cli.out
    assert cli("files", "download", name, "--provider", "box") == 0
    assert cli.out == content
    assert cli("files", "download", name, "--provider", "box", "-o", "copy.jsonl") == 0
    assert (cli.out, Path("copy.jsonl").read_text()) == ("", content)
    assert {path.name for path in tmp_path.iterdir()} == {"copy.jsonl", "requests.jsonl", "rowmill.yaml"}


def test_a_download_overwrites_a_file_only_with_overwrite(server: EmulatorServer, cli: Cli) -> None:
    name = upload(cli, LINE)
    Path("mine.txt").write_text("mine")
    assert cli("files", "download", name, "--provider", "box", "-o", "mine.txt") == 2
    assert cli.err == "mine.txt: is there already; name another file, or add --overwrite\n"
    assert Path("mine.txt").read_text() == "mine"
    assert cli("files", "download", name, "--provider", "box", "-o", "mine.txt", "--overwrite") == 0
    assert Path("mine.txt").read_text() == Path("requests.jsonl").read_text()


def test_a_request_for_a_deleted_file_ends_with_the_providers_message(server: EmulatorServer, cli: Cli) -> None:
    name = upload(cli, LINE)
    assert cli("files", "delete", name, "--provider", "box") == 0
    assert cli.out == f"deleted {name}\n"
    for command in (("show", name), ("delete", name), ("download", name, "-o", "copy.jsonl")):
        assert cli("files", *command, "--provider", "box") == 2
        assert cli.err == f"box: No such File object: {name}\n"
    assert not Path("copy.jsonl").exists()
    assert not Path("copy.jsonl.part").exists()


def test_batches_are_listed_shown_and_cancelled(server: EmulatorServer, cli: Cli) -> None:
    import asyncio

    from connectors.contracts import Provider
    from connectors.transport.client import HttpTransport, RequestTimeouts
    from pipelines.runtime.provider_api import ProviderApi

    name = upload(cli, *({**LINE, "custom_id": str(n)} for n in range(3)))

    async def create(metadata: dict[str, str]) -> str:
        transport = HttpTransport(RequestTimeouts(), 2)
        try:
            api = ProviderApi(transport, Provider("box", server.base_url, "secret"))
            return str((await api.create_batch(name, "/v1/chat/completions", metadata))["id"])
        finally:
            await transport.close()

    assert cli("batches", "list", "--provider", "box") == 0
    assert cli.out == "box has no batches\n"
    quick = asyncio.run(create({}))
    for _ in range(500):
        assert cli("batches", "show", quick, "--provider", "box", "--json") == 0
        if (item := objects(cli)[0])["status"] == "completed":
            break
        time.sleep(0.01)
    assert item["request_counts"] == {"total": 3, "completed": 3, "failed": 0}
    slow = asyncio.run(create({"rowmill_delay_s": "600"}))
    assert cli("batches", "list", "--provider", "box", "--json") == 0
    assert ({item["id"] for item in objects(cli)}, cli.err) == ({quick, slow}, "")
    assert cli("batches", "list", "--provider", "box", "--limit", "1", "--json") == 0
    assert (len(objects(cli)), cli.err) == (1, "There are older batches: --limit 2 lists more.\n")
    assert cli("batches", "cancel", slow, "--provider", "box") == 0
    assert cli.out in {f"{slow}: {status}; answered 0 of 3\n" for status in ("cancelling", "cancelled")}
    assert cli("batches", "cancel", quick, "--provider", "box") == 2
    assert cli.err == "box: Cannot cancel a batch with status 'completed'.\n"
    assert cli("batches", "list", "--provider", "box") == 0
    assert "3 of 3" in cli.out


def test_a_wrong_key_and_an_unreachable_provider_end_with_exit_code_3_and_one_line(
    server: EmulatorServer, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("BOX_KEY", "wrong")
    assert cli("models", "list", "--provider", "box") == 3
    assert cli.err == "box: Incorrect API key provided\n"
    Path("rowmill.yaml").write_text('providers: {box: {base_url: "http://127.0.0.1:9/v1"}}\n')
    assert cli("files", "list", "--provider", "box") == 3
    assert cli.err.startswith("box: cannot connect")
    assert len(cli.err.splitlines()) == 1
    assert cli("files", "list", "--provider", "bax") == 2
    assert "did you mean box?" in cli.err


def test_the_embedded_provider_keeps_files_between_commands(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("requests.jsonl").write_text(json.dumps(LINE) + "\n")
    assert cli("files", "upload", "requests.jsonl", "--provider", "local") == 0
    name = cli.out.split()[-1]
    assert cli("files", "list", "--provider", "local", "--json") == 0
    assert [item["id"] for item in objects(cli)] == [name]
    assert cli("files", "delete", name, "--provider", "local") == 0


async def test_an_upload_streams_from_disk_and_reports_its_progress(tmp_path: Path) -> None:
    from connectors.contracts import Provider
    from connectors.transport.client import HttpTransport, RequestTimeouts
    from pipelines.runtime.provider_api import ProviderApi

    file = tmp_path / "large.bin"
    file.write_bytes(bytes(3_000_000))
    progress: list[int] = []
    chunks: list[bytes] = []
    with EmulatorServer() as running:
        transport = HttpTransport(RequestTimeouts(), 2)
        api = ProviderApi(transport, Provider("box", running.base_url))
        item = await api.upload_file(file, "large.bin", "user_data", progress.append)
        await api.download_file(item["id"], chunks.append)
        await transport.close()
    assert progress == sorted(progress)
    assert (len(progress) > 10, progress[-1], item["bytes"]) == (True, 3_000_000, 3_000_000)
    assert b"".join(chunks) == bytes(3_000_000)
    assert len(chunks) > 1
