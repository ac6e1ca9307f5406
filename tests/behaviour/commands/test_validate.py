"""`rowmill validate` finds what can be found without a request; `plan` and `run` print the same warnings."""

import json

import pytest

from tests.conftest import Cli, ScriptedProvider, Workspace


def step(text: str, more: str = "") -> str:
    """A chat step with this user message."""
    return (
        "[{name: answer, endpoint: chat, provider: test, model: m, "
        f"messages: [{{user: {json.dumps(text)}}}], params: {{max_tokens: 20}}{more}}}]"
    )


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        ("id,text\n1,a\n1,b\n", "id is not unique: 1 occurs 2 times"),
        ("id,text\n1,a\n,b\n", "id is null in 1 row"),
    ],
    ids=["twice", "null"],
)
def test_a_key_that_identifies_no_row_is_refused(workspace: Workspace, cli: Cli, rows: str, problem: str) -> None:
    workspace.write("rows.csv", rows)
    assert cli("validate", workspace.job()) == 2
    assert (problem in cli.err, cli.out) == (True, "")


def test_a_condition_that_breaks_on_a_row_is_refused_without_a_key_too(workspace: Workspace, cli: Cli) -> None:
    workspace.write("rows.csv", "id,text\n1,a\n2,b\n")
    job = workspace.job(source="""{csv: rows.csv, where: "cast(text as integer) > 0"}""")
    for command in ("validate", "plan", "run"):
        assert cli(command, job) == 2
        (line,) = cli.err.splitlines()
        assert line.startswith(f"{job}:2: source: Could not convert string 'a'")


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"source": "{csv: [rows.csv, no.csv], key: id}"}, "2: source.csv: no.csv: no such file"),
        ({"source": "{jsonl: 'no*.jsonl', key: id}"}, "2: source.jsonl: no*.jsonl: no such file"),
        ({"source": "{parquet: in, key: id}"}, "2: source.parquet: in: no file in the folder ends in .parquet"),
        ({"source": "{duckdb: no.db, table: t, key: id}"}, "2: source.duckdb: no.db: no such file"),
        ({"source": "{duckdb: rows.csv, table: t, key: id}"}, "2: source.duckdb: rows.csv cannot be opened"),
        ({"sink": "{parquet: rows.csv}"}, "4: sink.parquet: @/rows.csv is a file"),
        ({"sink": "{duckdb: in, table: t}"}, "4: sink.duckdb: @/in is a folder"),
    ],
    ids=["file of a list", "glob", "folder", "no DuckDB file", "other file", "sink a file", "sink a folder"],
)
def test_a_path_that_cannot_be_used_is_named_with_the_line_and_the_key(
    workspace: Workspace, cli: Cli, keys: dict[str, str], message: str
) -> None:
    workspace.csv(1)
    (workspace.folder / "in").mkdir()
    job = workspace.job(**keys)
    for command in ("validate", "run"):
        assert cli(command, job) == 2
        (line,) = cli.err.splitlines()
        assert line.startswith(f"{job}:{message.replace('@', str(workspace.folder))}")


def test_of_several_jobs_the_one_with_a_broken_data_file_is_named(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(1)
    workspace.write("broken.csv", "id,text\n1\n")
    whole = workspace.job("whole")
    broken = workspace.job("broken", source="{csv: broken.csv, key: id}", sink="{parquet: other}")
    message = f"{workspace.folder}/broken.csv:2: 1 values, but the first line has 2: 1;"
    assert cli("validate", broken) == 2
    assert cli.err.startswith(message)
    assert cli("validate", whole, broken) == 2
    assert cli.err.startswith(f"{broken}: {message}")
    assert f"{whole}: OK" in cli.out


def test_a_model_without_a_price_under_a_budget_is_refused(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(2)
    job = workspace.job(budget="{usd: 1}", steps=step("{{ text }}").replace("model: m", "model: unknown"))
    assert cli("validate", job) == 2
    assert "no price is known for unknown" in cli.err


@pytest.mark.parametrize("missing", ["input", "output"])
def test_a_price_without_one_of_its_rates_is_refused_under_a_budget(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, missing: str
) -> None:
    path = workspace.folder / "rowmill.yaml"
    known = {"input": "output_per_million: 2", "output": "input_per_million: 1"}[missing]
    path.write_text(path.read_text().replace("{input_per_million: 1, output_per_million: 2}", f"{{{known}}}"))
    workspace.csv(2)
    assert cli("run", workspace.job(budget="{usd: 1}"), "--quiet") == 2
    assert f"the price of m has no {missing}_per_million, so a budget cannot be guaranteed; add it" in cli.err
    assert provider.seen == []


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("Label: {text}", "{text} is sent as it is, not as the column; write {{ text }}"),
        ("Label: ${ TEXT }", "${ TEXT } is sent as it is, not as the column; write {{ text }}"),
        ("Label: {row.text}", "{row.text} is sent as it is, not as the column; write {{ text }}"),
        ("Label: %(text)s", "%(text)s is sent as it is, not as the column; write {{ text }}"),
        ("text", "text is sent as it is, not as the column; write {{ text }}"),
        ("{{ text }} of {id}", "{id} is sent as it is, not as the column; write {{ id }}"),
    ],
)
def test_the_placeholder_of_another_template_language_gets_a_warning(
    workspace: Workspace, provider: ScriptedProvider, cli: Cli, text: str, warning: str
) -> None:
    workspace.csv(3)
    job = workspace.job(steps=step(text))
    line = f"{job}:3: steps.answer.messages.0.user: {warning}"
    assert (cli("validate", job), cli.err) == (0, f"{line}\n")
    assert cli("plan", job, "--json") == 0
    assert json.loads(cli.out)["warnings"] == [line]
    assert cli("plan", job) == 0
    assert f"warning: {line}" in cli.out
    assert cli("run", job) == 0
    assert line in cli.err
    assert cli("run", job, "--quiet") == 0
    assert cli.err == ""


@pytest.mark.parametrize(
    ("keys", "warning"),
    [
        (
            "endpoint: chat, messages: [{user: '{{ text }}'}], extra_body: {modalities: [text, audio]}",
            "extra_body.modalities: the sound of answers is billed, but only its transcript is stored; "
            "endpoint: speech stores sound",
        ),
        (
            "endpoint: responses, input: '{{ text }}', tools: [{type: web_search}, {type: image_generation}]",
            "tools.1: pictures of this tool are billed, but not stored; endpoint: image_generation stores them",
        ),
    ],
    ids=["sound", "pictures"],
)
def test_answers_that_are_billed_and_not_stored_get_a_warning(
    workspace: Workspace, cli: Cli, keys: str, warning: str
) -> None:
    workspace.csv(1)
    job = workspace.job(steps=f"[{{name: answer, provider: test, model: m, {keys}}}]")
    assert (cli("validate", job), cli.err) == (0, f"{job}:3: steps.answer.{warning}\n")


def test_a_prompt_without_a_column_gets_a_warning(workspace: Workspace, cli: Cli) -> None:
    workspace.csv(3)
    job = workspace.job(steps=step("Write a poem."))
    assert cli("validate", job) == 0
    assert cli.err == (
        f"{job}:3: steps.answer.messages: uses no column, so all rows send the same request; "
        "write e.g. {{ text }} where a row's value belongs\n"
    )


@pytest.mark.parametrize("text", ["{{ text }}", 'Return {"text": 1}: {{ row["text"] }}', "{% if text %}a{% endif %}"])
def test_a_prompt_with_a_column_gets_none(workspace: Workspace, cli: Cli, text: str) -> None:
    workspace.csv(3)
    assert (cli("validate", workspace.job(steps=step(text))), cli.err) == (0, "")


def test_files_that_do_not_exist_get_a_warning(workspace: Workspace, cli: Cli) -> None:
    workspace.write("a.png", "x")
    workspace.write("rows.csv", "id,file\n1,a.png\n2,b.png\n3,c.png\n4,https://example.org/d.png\n5,\n")
    steps = "[{name: answer, endpoint: chat, provider: test, model: m, messages: [{user: [{image: file}]}]}]"
    job = workspace.job(steps=steps)
    assert cli("validate", job) == 0
    assert cli.err == (
        f"{job}:3: steps.answer: file names files that do not exist in 2 rows, e.g. b.png; add the files\n"
    )


def test_the_file_of_the_workspace_is_named_as_what_it_is(workspace: Workspace, cli: Cli) -> None:
    path = workspace.folder / "rowmill.yaml"
    assert cli("validate", path) == 2
    assert cli.err == (
        f"{path}: is the workspace's file, not a job; name a job file: the workspace's file is checked with each job\n"
    )


def test_a_secret_that_is_too_short_to_be_masked_gets_a_warning(
    workspace: Workspace, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEAM", "ab")
    path = workspace.folder / "rowmill.yaml"
    path.write_text(path.read_text().replace("test: {", "test: {headers: {X-Team: {env: TEAM}}, "))
    workspace.csv(1)
    assert cli("validate", workspace.job()) == 0
    assert cli.err == (
        f"{path}:3: providers.test.headers.X-Team: TEAM has fewer than 3 characters and is not masked if the provider "
        "repeats it; use a longer secret\n"
    )
    monkeypatch.setenv("TEAM", "abc")
    assert cli("validate", workspace.job()) == 0
    assert cli.err == ""
