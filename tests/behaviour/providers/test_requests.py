"""What is added to every request: headers, query, the key in a header of its own, and other names of models."""

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from tests.behaviour.providers.conftest import RecordingProvider
from tests.behaviour.security.test_secrets import written_texts


def test_headers_query_and_key_reach_every_endpoint_of_a_provider(
    recorder: RecordingProvider, configure: Callable[..., Any], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM", "blue")
    monkeypatch.setenv("AZURE_KEY", "k-1")
    job = configure(
        base_url=f"http://127.0.0.1:{recorder.port}/openai/deployments/labels",
        query={"api-version": "2025-04-01-preview"},
        headers={"OpenAI-Project": "proj_1", "X-Team": {"env": "TEAM"}, "user-agent": "acme/1"},
        api_key_env="AZURE_KEY",
        api_key_header="api-key",
    )
    assert cli("run", job, "--quiet") == 0, cli.err
    monkeypatch.chdir(job.parent)
    assert cli("models", "list", "--provider", "test") == 0, cli.err
    base = "/openai/deployments/labels"
    assert recorder.urls == [
        *[f"{base}/chat/completions?api-version=2025-04-01-preview"] * 2,
        f"{base}/models?api-version=2025-04-01-preview",
    ]
    names = ("OpenAI-Project", "X-Team", "User-Agent", "api-key", "Authorization")
    sent = [{name.lower(): value for name, value in headers.items()} for headers in recorder.headers]
    assert [tuple(headers.get(name.lower()) for name in names) for headers in sent] == [
        ("proj_1", "blue", "acme/1", "k-1", None)
    ] * 3


def test_headers_query_and_models_are_part_of_no_fingerprint(
    recorder: RecordingProvider, configure: Callable[..., Any], cli: Any
) -> None:
    assert cli.run(configure(base_url=recorder.base_url))["requests"] == 2
    changed = {"headers": {"X": "1"}, "query": {"v": "2"}, "models": {"m": "other/m"}, "api_key_header": "k"}
    report = cli.run(configure(base_url=recorder.base_url, **changed))
    assert (report["requests"], report["rows_ok"]) == (0, 2)


def test_a_model_is_sent_by_the_providers_name_and_priced_by_it(
    recorder: RecordingProvider, configure: Callable[..., Any], cli: Any, read: Any
) -> None:
    prices = (
        "{m: {input_per_million: 100, output_per_million: 100}, g/m: {input_per_million: 1, output_per_million: 2}}"
    )
    job = configure(prices=prices, base_url=recorder.base_url, models={"m": "g/m"})
    report = cli.run(job)
    assert recorder.models == ["g/m", "g/m"]
    assert report["cost_usd"] == pytest.approx(2 * (10 * 1 + 5 * 2) / 1e6)
    usage = read(job.parent / "out", "usage")
    assert [(row["model"], row["model_version"]) for row in usage] == [("m", "g/m-2026")] * 2


def test_the_members_of_a_pool_call_one_model_by_different_names(
    recorder: RecordingProvider, workspace: Any, cli: Any, read: Any
) -> None:
    workspace.write(
        "rowmill.yaml",
        "providers:\n"
        f"  one: {{base_url: '{recorder.base_url}', models: {{m: model-one}}, limits: {{concurrency: 1}}}}\n"
        f"  two: {{base_url: 'http://127.0.0.1:{recorder.port}/two', limits: {{concurrency: 1}}}}\n"
        "  test: {members: [one, two]}\n",
    )
    workspace.csv(40)
    assert cli.run(workspace.job())["rows_ok"] == 40
    pairs = set(zip((url.split("/")[1] for url in recorder.urls), recorder.models, strict=True))
    assert pairs == {("v1", "model-one"), ("two", "m")}
    assert {row["model"] for row in read(workspace.folder / "out", "usage")} == {"m"}


def test_secret_headers_that_a_provider_repeats_appear_nowhere(
    recorder: RecordingProvider, configure: Callable[..., Any], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = "team/secret one"
    monkeypatch.setenv("TEAM", secret)
    recorder.content = lambda headers, text: f"{headers['X-Team']} {text}"
    recorder.accepts = lambda headers: parse_qs(urlsplit(recorder.urls[-1]).query) == {"code": [secret]}
    job = configure(base_url=recorder.base_url, headers={"X-Team": {"env": "TEAM"}}, query={"code": {"env": "TEAM"}})
    assert cli("run", job) == 0, cli.err
    assert len(recorder.urls) == 2
    outputs = [cli.out, cli.err]
    recorder.accepts = lambda headers: False
    report = ["report", job, "-o", job.parent / "page.html"]
    for command in (["errors", job], ["show", job, "1"], report, ["validate", job], ["usage", job]):
        cli(*command)
        outputs += [cli.out, cli.err]
    texts = [*written_texts(job.parent), *(("output", text) for text in outputs)]
    for where, text in texts:
        assert secret not in text, where
        assert "team%2Fsecret" not in text, where
        assert "team/secret" not in text, where


def test_an_environment_file_sets_the_variables_that_the_workspace_names(
    recorder: RecordingProvider, configure: Callable[..., Any], cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SRV_KEY", "TEAM", "UNNAMED"):
        monkeypatch.delenv(name, raising=False)
    keys = {"base_url": recorder.base_url, "api_key_env": "SRV_KEY", "headers": {"X-Team": {"env": "TEAM"}}}
    job = configure(**keys)
    assert cli("validate", job) == 2
    assert "the variable SRV_KEY is not set; export SRV_KEY=YOUR_KEY, or write SRV_KEY=YOUR_KEY in .env" in cli.err
    (job.parent / ".env").write_text("export SRV_KEY='sk-from-file'\nTEAM=from-file\nUNNAMED=1\n")
    monkeypatch.setenv("TEAM", "from-environment")
    assert cli("validate", job) == 0, cli.err
    assert f"{job.parent / '.env'}: read for SRV_KEY\n" in cli.out
    assert "sk-from-file" not in cli.out + cli.err
    assert cli("run", job, "--quiet") == 0, cli.err
    assert {(headers["Authorization"], headers["X-Team"]) for headers in recorder.headers} == {
        ("Bearer sk-from-file", "from-environment")
    }
    text = (job.parent / "rowmill.yaml").read_text()
    (job.parent / "rowmill.yaml").write_text(f"{text}env_file: false\n")
    assert cli("validate", job) == 2
    (job.parent / "rowmill.yaml").write_text(f"{text}env_file: missing.env\n")
    assert cli("validate", job) == 2
    assert "env_file: missing.env cannot be read (No such file or directory)" in cli.err


def test_an_environment_file_reaches_the_command_at_the_end_of_a_run(
    recorder: RecordingProvider, workspace: Any, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HOOK_TOKEN", raising=False)
    workspace.write("rowmill.yaml", f"providers: {{test: {json.dumps({'base_url': recorder.base_url})}}}\n")
    workspace.write(".env", "HOOK_TOKEN=t-1\n")
    workspace.csv(1)
    job = workspace.job(on_finish="{command: sh -c 'printf %s $HOOK_TOKEN > token'}")
    assert cli("run", job, "--quiet") == 0, cli.err
    assert (workspace.folder / "token").read_text() == "t-1"
