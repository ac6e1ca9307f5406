"""API keys: sent to their provider's host only, and absent from everything that is written or printed."""

import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from pipelines.ledger.projection import decode_table
from tests.behaviour.faults.hostile_server import HostileServer, ReceivedRequest
from tests.conftest import ScriptedProvider
from tests.support.exhaustive import marks
from tests.support.shared_database import shared_cursor

KEY = "sk-proj-very/secret+0123456789abcdef"


@pytest.fixture
def keyed(workspace: Any, provider: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """A workspace whose provider accepts KEY."""
    monkeypatch.setenv("TEST_KEY", KEY)
    workspace.write(
        "rowmill.yaml", f'providers: {{test: {{base_url: "{provider.base_url}", api_key_env: TEST_KEY}}}}\n'
    )
    return workspace


def written_texts(folder: Path) -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every file, with tables and compressed parts of the ledger decoded."""
    for path in folder.rglob("*"):
        if not path.is_file():
            continue
        yield str(path), path.read_bytes().decode("latin-1")
        if path.suffix == ".parquet":
            with shared_cursor() as db:
                yield f"rows of {path}", str(db.sql(f"from read_parquet('{path}')").to_arrow_table().to_pylist())
        if path.name == "ledger.sqlite":
            db_file = sqlite3.connect(path)
            for (table,) in db_file.execute("select name from sqlite_master where type = 'table'").fetchall():
                yield f"{table} of the ledger", str(db_file.execute(f"select * from {table}").fetchall())
            for blobs in db_file.execute("select rows, errors, cleared, removed from commits").fetchall():
                for blob in blobs:
                    yield "commits of the ledger", "" if blob is None else str(decode_table(blob).to_pylist())
            db_file.close()


def assert_hidden(folder: Path, *outputs: str) -> None:
    """Assert that the key, also as JSON escapes it, appears nowhere."""
    forms = (KEY, KEY.replace("/", "\\/"), KEY[8:28])
    for where, text in (*written_texts(folder), *(("output", text) for text in outputs)):
        for form in forms:
            assert form not in text, where


def echoing(status: int, body: Callable[[str], str], kind: str = "application/json") -> Callable[..., Any]:
    """A provider that repeats the Authorization header."""
    text = body(f"Bearer {KEY}")
    return lambda path, asked, count: web.Response(
        text=text, status=status, content_type=kind, headers={"x-request-id": f"of Bearer {KEY}"}
    )


def as_error(text: str) -> str:
    return json.dumps({"error": {"message": f"Incorrect: {text}", "type": "t", "code": text, "more": [text]}})


ECHOES = {
    "400": echoing(400, as_error),
    "401": echoing(401, as_error),
    "429": echoing(429, as_error),
    "500": echoing(500, as_error),
    "200": echoing(200, as_error),
    "302": echoing(302, as_error),
    "400 escaped": echoing(400, lambda text: as_error(text).replace("/", "\\/")),
    "403 HTML": echoing(403, lambda text: f"<html>Headers: {text}</html>", "text/html"),
    "200 not JSON": echoing(200, lambda text: f"no JSON: {text}", "text/plain"),
}


@pytest.mark.parametrize(
    ("script", "log"),
    [
        # By default the replies take turns with the logs.
        pytest.param(script, log, marks=marks((place + turn) % 2 > 0), id=f"{name}, {log}")
        for place, (name, script) in enumerate(ECHOES.items())
        for turn, log in enumerate(("plain", "json"))
    ],
)
def test_a_key_that_the_provider_repeats_is_not_printed(
    keyed: Any, provider: Any, cli: Any, script: Callable[..., Any], log: str
) -> None:
    keyed.csv(3)
    provider.script = script
    job = keyed.job(retry="{attempts: 2, longest_wait: 0.01, longest_hold: 0.2}")
    assert cli("run", job, "--log", log) in (1, 3)
    outputs = [cli.out, cli.err]
    for command in (["errors", job], ["status", job], ["usage", job], ["show", job, "1"], ["run", job, "--json"]):
        cli(*command)
        outputs += [cli.out, cli.err]
    assert_hidden(keyed.folder, *outputs)
    assert {headers["Authorization"] for headers in provider.headers} == {f"Bearer {KEY}"}


@pytest.mark.parametrize("kind", ["content", "refusal"])
def test_a_key_that_a_streamed_answer_repeats_in_pieces_is_not_stored(
    keyed: Any, provider: Any, cli: Any, read: Any, kind: str
) -> None:
    deltas = [*({kind: KEY[place : place + 5]} for place in range(0, len(KEY), 5)), {}]
    choices = [{"index": 0, "delta": delta, "finish_reason": None if delta else "stop"} for delta in deltas]
    body = "".join(f"data: {json.dumps({'choices': [choice]})}\n\n" for choice in choices)
    provider.script = lambda path, asked, count: web.Response(text=body, content_type="text/event-stream")
    keyed.csv(1)
    job = keyed.job()
    job.write_text(job.read_text().replace("model: m", "model: m, stream: true"))
    cli("run", job)
    outputs = [cli.out, cli.err]
    for command in (["errors", job], ["show", job, "1"]):
        cli(*command)
        outputs += [cli.out, cli.err]
    assert_hidden(keyed.folder, *outputs)
    table, column = ("results", "answer") if kind == "content" else ("errors", "message")
    assert [row[column] for row in read(keyed.folder / "out", table)] == [
        "[the key]" if kind == "content" else "the model refused: [the key]"
    ]


def test_an_invalid_http_reply_is_quoted_without_the_key(
    workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    server = HostileServer()

    async def echo(asked: ReceivedRequest) -> None:
        await asked.send(f"HTTP/1.1 200 OK\r\nBad header Bearer {KEY}: \x00\r\n\r\n".encode())
        raise EOFError

    server.fault, server.hits = echo, lambda asked, count: True
    workspace.write(
        "rowmill.yaml",
        f'providers: {{test: {{base_url: "http://127.0.0.1:{server.port}/v1", api_key_env: TEST_KEY}}}}\n',
    )
    workspace.csv(2)
    assert cli("run", workspace.job(retry="{attempts: 2, longest_wait: 0.01}")) == 1
    server.close()
    assert_hidden(workspace.folder, cli.out, cli.err)


def test_the_traceback_of_a_defect_contains_no_key(keyed: Any) -> None:
    """The worst case: an unexpected exception in the middle of an exchange."""
    keyed.csv(2)
    script = (
        "import connectors.endpoints.chat as chat\n"
        "def broken(*arguments): raise ZeroDivisionError('a defect')\n"
        "chat.ChatCompletionsFormat.parse_choices = broken\n"
        "from pipelines.cli import main\nmain()\n"
    )
    command = [sys.executable, "-X", "dev", "-c", script, "run", str(keyed.job())]
    completed = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert "ZeroDivisionError: a defect" in completed.stderr
    assert_hidden(keyed.folder, completed.stdout, completed.stderr)


def test_keys_go_to_their_own_provider_and_not_along_redirects(
    workspace: Any, provider: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ScriptedProvider()
    monkeypatch.setenv("ONE_KEY", "sk-one-0123456789")
    monkeypatch.setenv("OTHER_KEY", "sk-other-0123456789")
    workspace.write(
        "rowmill.yaml",
        "providers:\n"
        f'  test: {{base_url: "{provider.base_url}", api_key_env: ONE_KEY}}\n'
        f'  other: {{base_url: "{other.base_url}", api_key_env: OTHER_KEY}}\n'
        f'  open: {{base_url: "{other.base_url}"}}\n',
    )
    workspace.csv(3)
    for name, sink in (("test", "a"), ("other", "b"), ("open", "c")):
        steps = (
            f'[{{name: a, endpoint: chat, provider: {name}, model: m, messages: [{{user: "{{{{ text }}}} {name}"}}]}}]'
        )
        assert cli("run", workspace.job(steps=steps, sink=f"{{parquet: {sink}}}")) == 0
    assert {headers["Authorization"] for headers in provider.headers} == {"Bearer sk-one-0123456789"}
    assert [headers.get("Authorization") for headers in other.headers] == ["Bearer sk-other-0123456789"] * 3 + [
        None
    ] * 3

    other.headers.clear()
    provider.script = lambda path, body, count: web.Response(
        status=307, headers={"Location": f"{other.base_url}/chat/completions?token=x"}
    )
    workspace.csv(4)
    assert cli("run", workspace.job(sink="{parquet: d}"), "--json") == 3
    reason = json.loads(cli.out)["stopped"]
    assert "redirected to" in reason
    assert "token" not in reason
    assert other.headers == []
    other.close()


def test_http_to_another_machine_prints_a_warning(workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_KEY", KEY)
    workspace.csv(1)
    workspace.write(
        "rowmill.yaml", 'providers: {test: {base_url: "http://provider.invalid/v1", api_key_env: TEST_KEY}}\n'
    )
    job = workspace.job(retry="{attempts: 1, longest_wait: 0.01, longest_hold: 0.05}")
    assert cli("validate", job) == 0
    assert "http without encryption" in cli.err
    assert cli("run", job) in (1, 3)
    assert "http without encryption" in cli.err
    assert cli("run", job, "--quiet") in (1, 3)
    assert "http without encryption" not in cli.err
    assert_hidden(workspace.folder, cli.err)


def test_a_key_in_a_file_is_an_error_that_does_not_repeat_it(
    workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    workspace.csv(1)
    for text in (
        f'providers: {{test: {{base_url: "https://a.invalid/v1", api_key_env: "{KEY}"}}}}',
        f'providers: {{test: {{base_url: "https://user:{KEY[8:28]}@a.invalid/v1"}}}}',
    ):
        workspace.write("rowmill.yaml", text + "\n")
        assert cli("validate", workspace.job()) == 2
        assert KEY not in cli.err
        assert KEY[8:28] not in cli.err


def test_files_from_answers_are_named_by_content(workspace: Any, provider: Any, cli: Any) -> None:
    import base64
    import io

    from PIL import Image

    picture = io.BytesIO()
    Image.new("RGB", (2, 2)).save(picture, "PNG")
    workspace.write("rows.csv", "id,text\n../../evil,../../../etc/passwd\n/abs,x\n")
    provider.script = lambda path, body, count: {
        "created": 1, "data": [{"b64_json": base64.b64encode(picture.getvalue()).decode(), "url": "/etc/x.png"}],
    }  # fmt: skip
    steps = '[{name: a, endpoint: image_generation, provider: test, model: dall-e-2, prompt: "{{ text }}"}]'
    assert cli("run", workspace.job(steps=steps)) == 0, cli.err
    made = list(workspace.folder.rglob("*.png"))
    assert made
    assert all(len(path.stem) == 32 and path.parent == workspace.folder / "out" / "files" for path in made)


async def test_a_name_that_changes_to_a_private_address_is_refused(
    provider: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: each connection goes to the address that was checked."""
    import io

    import aiohttp

    from connectors.media.url_fetcher import FetchError, UrlFetcher

    asked: list[str] = []

    async def resolve(self: Any, host: str, port: int = 0, family: Any = 0) -> list[dict[str, Any]]:
        asked.append(host)
        return [
            {"hostname": host, "host": address, "port": port, "family": 2, "proto": 0, "flags": 0}
            for address in (("192.0.9.9", "127.0.0.1") if len(asked) == 1 else ("127.0.0.1",))
        ]

    monkeypatch.setattr(aiohttp.ThreadedResolver, "resolve", resolve)
    fetcher = UrlFetcher((), waits=())
    port = provider.base_url.split(":")[2].split("/")[0]
    for _ in range(2):
        with pytest.raises(FetchError, match="private address"):
            await fetcher.fetch(f"http://public.example:{port}/v1/x", 1000, io.BytesIO())
    await fetcher.close()
    assert asked == ["public.example"] * 2
    assert provider.seen == []
