"""The workspace: where it is found, its settings and providers, its errors, and that keys stay secret."""

from collections.abc import Callable
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from connectors.contracts import Provider
from connectors.errors import JobError
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.pricing.prices import PriceEntry


@pytest.fixture
def workspace_error(workspace: Callable[[str], Workspace]) -> Callable[[str], str]:
    def message(text: str) -> str:
        with pytest.raises(JobError) as caught:
            workspace(text)
        return str(caught.value)

    return message


def test_a_complete_workspace_file_is_loaded_in_full(
    contract_workspace: str,
    workspace: Callable[[str], Workspace],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = workspace(contract_workspace)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1\n")
    assert found.provider("openai") == Provider(
        name="openai", base_url="https://api.openai.com/v1", api_key="sk-1", requests_per_minute=10000
    )
    assert found.provider("gpu-box") == Provider(
        name="gpu-box", base_url="http://127.0.0.1:8000/v1", concurrency=64, is_local=True
    )
    assert found.pools == {"pool": ("openai", "gpu-box")}
    assert (found.folder, found.state, found.roots) == (folder, folder / ".rowmill", (Path("/mnt/media"),))
    assert (found.hosts, found.zone, found.keep_answers) == (("media.internal",), ZoneInfo("Europe/Berlin"), "pruned")
    assert found.budget is not None
    assert found.budget.usd_per_day == 40
    assert found.prices == {
        "my-model": PriceEntry(
            input_per_million=0.1,
            output_per_million=0.4,
            per_image=0.04,
            audio_per_minute=0.006,
            per_million_characters=15,
        )
    }
    assert (found.has_file, found.warnings(())) == (True, ())


def test_without_a_file_the_folder_of_the_job_file_is_the_workspace(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = find_workspace("jobs/x.yaml")
    assert (found.folder, found.has_file, found.state) == (folder / "jobs", False, folder / "jobs" / ".rowmill")
    assert (found.roots, found.hosts, found.budget, found.prices, found.pools) == ((), (), None, {}, {})
    assert (found.zone, found.keep_answers) == (ZoneInfo("UTC"), "pruned")
    monkeypatch.setenv("OPENAI_API_KEY", "sk-1")
    assert found.provider("openai") == Provider(name="openai", base_url="https://api.openai.com/v1", api_key="sk-1")
    assert found.provider("local") == Provider(name="local", base_url="", is_local=True)


def test_the_nearest_file_at_or_above_counts(folder: Path) -> None:
    Path("jobs/deep/deeper").mkdir(parents=True)
    Path("rowmill.yaml").write_text("state: far")
    assert find_workspace("jobs/deep/deeper/x.yaml").state == folder / "far"
    Path("jobs/deep/rowmill.yaml").write_text("")
    assert find_workspace("jobs/deep/deeper/x.yaml").state == folder / "jobs/deep/.rowmill"
    assert find_workspace(folder / "jobs" / "deep").folder == folder / "jobs" / "deep"
    assert find_workspace("jobs").folder == folder


def test_openai_base_url_applies_if_no_file_defines_the_provider(
    workspace: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_BASE_URL", "http://localhost:9/v1/")
    monkeypatch.setenv("OPENAI_API_KEY", "k")
    expected = Provider(name="openai", base_url="http://localhost:9/v1", api_key="k", is_local=True)
    assert workspace("time_zone: UTC").provider("openai") == expected
    named = workspace("providers: {openai: {base_url: 'https://api.openai.com/v1'}}").provider("openai")
    assert named == Provider(name="openai", base_url="https://api.openai.com/v1")
    monkeypatch.setenv("OPENAI_BASE_URL", "localhost:9")
    with pytest.raises(JobError) as caught:
        workspace("").provider("openai")
    assert str(caught.value) == (
        'OPENAI_BASE_URL: found "localhost:9", not an http or https address; write e.g. https://api.openai.com/v1'
    )


def test_a_key_is_read_on_demand_and_never_shown(
    contract_workspace: str, workspace: Callable[[str], Workspace], monkeypatch: pytest.MonkeyPatch
) -> None:
    found = workspace(contract_workspace)
    where = "rowmill.yaml:2: providers.openai.api_key_env"
    remedy = "export OPENAI_API_KEY=YOUR_KEY, or write OPENAI_API_KEY=YOUR_KEY in .env"
    for value, message in [
        (None, f"{where}: the variable OPENAI_API_KEY is not set; {remedy}"),
        ("  ", f"{where}: the variable OPENAI_API_KEY is not set; {remedy}"),
        ("sk\n1", f"{where}: OPENAI_API_KEY holds characters that no key has; copy the key again"),
        ("sk-é", f"{where}: OPENAI_API_KEY holds characters that no key has; copy the key again"),
    ]:
        if value is not None:
            monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(JobError) as caught:
            found.provider("openai")
        assert str(caught.value) == message
        assert caught.value.exit_code == 2
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    provider = found.provider("openai")
    assert provider.api_key == "sk-secret"
    assert "sk-secret" not in repr((found, provider))


def test_no_environment_file_is_suggested_to_a_workspace_that_reads_none(
    contract_workspace: str, workspace: Callable[[str], Workspace]
) -> None:
    with pytest.raises(JobError) as caught:
        workspace(f"{contract_workspace}\nenv_file: false\n").provider("openai")
    assert caught.value.remedy == "export OPENAI_API_KEY=YOUR_KEY"


def test_an_unset_key_without_a_file_is_reported_at_the_step(folder: Path) -> None:
    where = "jobs/x.yaml:5: steps.label.provider"
    with pytest.raises(JobError) as caught:
        find_workspace("jobs/x.yaml").provider("openai", where=where)
    remedy = "export OPENAI_API_KEY=YOUR_KEY, or write OPENAI_API_KEY=YOUR_KEY in .env"
    assert str(caught.value) == f"{where}: the variable OPENAI_API_KEY is not set; {remedy}"


def test_an_unknown_provider_and_a_pool_are_errors(
    contract_workspace: str, workspace: Callable[..., Workspace]
) -> None:
    found = workspace(contract_workspace)
    for name, message in [
        ("opnai", "no provider opnai; did you mean openai?"),
        ("", "no provider ; known here: gpu-box, local, openai, pool"),
        ("pool", "pool is a pool; name one of its members: openai, gpu-box"),
    ]:
        with pytest.raises(JobError) as caught:
            found.provider(name, where="jobs/x.yaml:5: steps.label.provider")
        assert str(caught.value) == f"jobs/x.yaml:5: steps.label.provider: {message}"


@pytest.mark.parametrize(
    ("url", "is_local"),
    [
        ("http://localhost:1/v1", True),
        ("http://api.localhost", True),
        ("http://127.8.0.1", True),
        ("http://[::1]:80/v1", True),
        ("http://0.0.0.0:80/v1", True),
        ("https://localhost.example.org", False),
        ("https://127.0.0.1.example.org", False),
        ("https://10.0.0.1/v1", False),
    ],
)
def test_a_provider_with_a_loopback_host_is_local(
    workspace: Callable[[str], Workspace], url: str, is_local: bool
) -> None:
    provider = workspace(f"providers: {{box: {{base_url: '{url}'}}}}").provider("box")
    assert (provider.is_local, provider.tag) == (is_local, f"box@{'here' if is_local else 'there'}")


def test_http_without_encryption_to_another_machine_is_a_warning(workspace: Callable[[str], Workspace]) -> None:
    found = workspace(
        "providers:\n  a: {base_url: http://10.0.0.1/v1}\n  b: {base_url: http://b.org, api_key_env: B}\n"
        "  c: {base_url: http://127.0.0.1/v1}\n  d: {base_url: https://d.org}\n"
    )
    remedy = "write https where the server offers it"
    assert found.warnings(()) == (
        f"rowmill.yaml:2: providers.a.base_url: http without encryption to another machine; {remedy}",
        "rowmill.yaml:3: providers.b.base_url: http without encryption to another machine, the key goes with it; "
        f"{remedy}",
    )


@pytest.mark.parametrize(
    ("written", "replacement", "message"),
    [
        (
            "api_key_env: OPENAI_API_KEY",
            "api_key: sk-1",
            "2: providers.openai.api_key: a secret is never written in a file; "
            "set a variable and name it as api_key_env in rowmill.yaml",
        ),
        (
            "api_key_env: OPENAI_API_KEY",
            "api_key_env: sk-1",
            "2: providers.openai.api_key_env: not the name of a variable; "
            "set one to the key and write its name, e.g. OPENAI_API_KEY",
        ),
        (
            "https://api.openai.com/v1",
            "api.openai.com/v1",
            '2: providers.openai.base_url: found "api.openai.com/v1", not an http or https address; {address}',
        ),
        (
            "hosts: [media.internal]",
            "hosts: [http://media.internal]",
            '7: hosts: found "http://media.internal", not the name of a host; write e.g. hosts: [media.internal]',
        ),
        (
            "https://api.openai.com/v1",
            "https://me:pw@api.openai.com",
            "2: providers.openai.base_url: holds a user or password; "
            "a secret is never written in a file, name its variable: api_key_env",
        ),
        (
            "https://api.openai.com/v1",
            "https:///v1",
            '2: providers.openai.base_url: found "https:///v1", an address without a host; {address}',
        ),
        (
            "https://api.openai.com/v1",
            "https://a:99999",
            '2: providers.openai.base_url: found "https://a:99999", not an address (Port out of range 0-65535); '
            "{address}",
        ),
        (
            "https://api.openai.com/v1",
            "https://a/v1?b=c",
            "2: providers.openai.base_url: ends with a ? part, and paths are added behind it; "
            "write it as a key of the provider: query: {b: VALUE}",
        ),
        (
            "base_url: https://api.openai.com/v1, ",
            "",
            "2: providers.openai.base_url: missing; write e.g. base_url: https://api.openai.com/v1",
        ),
        ("gpu-box:", "local:", "3: providers.local: is built in and takes no keys; choose another name"),
        ("gpu-box:", "gpu box:", "3: providers.gpu box: not a name; write letters, digits, _ . and - only"),
        ("[openai, gpu-box]", "[gpu]", "4: providers.pool.members.0: no such provider; did you mean gpu-box?"),
        (
            "[openai, gpu-box]",
            "[gpu-box], base_url: https://a",
            "4: providers.pool.base_url: cannot be combined with members; a pool takes it from each of its members",
        ),
        (
            "concurrency: 64",
            "inflight: 64",
            "3: providers.gpu-box.limits.inflight: no such key; did you mean concurrency?",
        ),
        (
            "concurrency: 64",
            "concurrency: 0",
            "3: providers.gpu-box.limits.concurrency: found 0, expected at least 1; write e.g. concurrency: 64",
        ),
        ("roots: [/mnt/media]", "roots: /mnt", '6: roots: found "/mnt", expected a list; write e.g. roots: {roots}'),
        (
            "usd_per_day: 40",
            "usd: 40",
            "8: budget.usd: no such key; did you mean usd_per_day?",
        ),
        ("time_zone:", "timezone:", "9: timezone: no such key; did you mean time_zone?"),
        (
            "Europe/Berlin",
            "Berlin",
            '9: time_zone: found "Berlin", not a time zone; write e.g. time_zone: Europe/Berlin',
        ),
        (
            "keep_answers: pruned",
            "keep_answers: comitted",
            '11: keep_answers: found "comitted", expected pruned or committed; did you mean committed?',
        ),
        ("input_per_million: 0.1", "input: 0.1", "12: prices.my-model.input: no such key; {input}"),
        (
            "input_per_million: 0.1",
            "input_per_million: cheap",
            '12: prices.my-model.input_per_million: found "cheap", expected a number; write a number',
        ),
    ],
)
def test_an_error_in_the_workspace_file_has_line_key_and_remedy(
    contract_workspace: str, workspace_error: Callable[[str], str], written: str, replacement: str, message: str
) -> None:
    assert written in contract_workspace
    for word, words in {
        "address": "write e.g. https://api.openai.com/v1",
        "roots": '["/mnt/media"]',
        "input": "did you mean input_per_million?",
    }.items():
        message = message.replace(f"{{{word}}}", words)
    assert workspace_error(contract_workspace.replace(written, replacement, 1)) == f"rowmill.yaml:{message}"


def test_an_error_in_a_workspace_above_is_located_from_the_current_folder(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("rowmill.yaml").write_text("states: x")
    monkeypatch.chdir("jobs")
    for path, file in [
        (Path("x.yaml"), Path("../rowmill.yaml")),
        (folder / "jobs" / "x.yaml", folder / "rowmill.yaml"),
    ]:
        with pytest.raises(JobError) as caught:
            find_workspace(path)
        assert str(caught.value) == f"{file}:1: states: no such key; did you mean state?"
