"""Sandboxes: a job file's templates, SQL and YAML reach their inputs and nothing else of the machine."""

import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import duckdb
import pyarrow.parquet as pq
import pytest

from connectors.errors import JobError
from connectors.templating.template import RenderError, Template
from pipelines.config.yaml_reader import parse_yaml
from tests.support.exhaustive import marks

SECRET = "outside-and-secret"

ESCAPES = [
    "{{ x.__class__ }}",
    "{{ ''.__class__.__mro__ }}",
    "{{ x|attr('__class__') }}",
    "{{ row.__class__.__init__.__globals__ }}",
    "{{ x.upper.__self__ }}",
    "{% include '/etc/passwd' %}",
    "{% import 'os' as os %}",
    "{% extends '/etc/passwd' %}",
    "{{ cycler.__init__.__globals__.os.popen('id').read() }}",
    "{{ lipsum.__globals__ }}",
    "{{ self.__init__ }}",
    "{{ open('/etc/passwd').read() }}",
    "{{ x.format.__func__ }}",
    "{{ '{0.__class__}'.format(x) }}",
]

ENDLESS = [
    "{{ range(1000000000) }}",
    "{% for i in range(1000000000) %}a{% endfor %}",
    "{% for a in range(9999) %}{% for b in range(9999) %}x{% endfor %}{% endfor %}",
    "{{ 'x' * 1000000000 }}",
    "{{ [1] * 1000000000 }}",
    "{{ 10 ** 1000000000 }}",
    "{{ '%1000000000d'|format(1) }}",
    "{{ x|indent(1000000000) }}",
    "{{ ('a' * 1000)|replace('a', 'b' * 1000000)|length }}",
    "{% set ns = namespace(x='a') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x|length }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{% set y %}{% for i in range(90000) %}{{ 'x' * 10000 }}{% endfor %}{% endset %}{{ y|length }}",
    "{{ [1, 2]|batch(1000000000, 1)|list|length }}",
    "{{ 'x' * 21000000 }}",
]


@pytest.mark.parametrize("source", ESCAPES)
def test_a_template_cannot_reach_python(source: str) -> None:
    with pytest.raises((JobError, RenderError)):
        template = Template(source, ("steps", "a", "input"))
        text = template.render(dict.fromkeys({*template.columns, "x"}, "v"))
        raise AssertionError(text)


def test_a_template_without_a_known_column_is_an_error_before_anything_is_sent(
    workspace: Any, provider: Any, cli: Any
) -> None:
    workspace.csv(2)
    for source in ("{{ cycler }}", "{{ self }}", "{{ config.items() }}", "{{ os }}"):
        steps = f"[{{name: a, endpoint: chat, provider: test, model: m, messages: [{{user: {json.dumps(source)}}}]}}]"
        assert cli("run", workspace.job(steps=steps)) == 2
        assert "no column" in cli.err
    assert provider.seen == []


@pytest.mark.parametrize("source", ENDLESS)
def test_a_template_is_bounded_in_time_and_output(source: str) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.process_time()
    with pytest.raises((JobError, RenderError)):
        Template(source, ("steps", "a", "input")).render({"x": "v"})
    assert time.process_time() - started < 10
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300_000


def test_a_value_is_never_rendered_as_a_template(workspace: Any, provider: Any, cli: Any) -> None:
    workspace.write("rows.csv", 'id,text\n1,"{{ 7 * 7 }} {% for x in y %}"\n')
    assert cli.run(workspace.job())["exit_code"] == 0
    assert provider.prompts() == ["{{ 7 * 7 }} {% for x in y %}"]


def test_a_yaml_alias_bomb_is_an_error_without_expanding_it() -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 30)]
    script = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))\n"
        "from connectors.errors import JobError\nfrom pipelines.config.yaml_reader import parse_yaml\n"
        "try:\n    parse_yaml(sys.stdin.read(), 'x')\nexcept JobError as exc:\n    print(exc)\n"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], input="\n".join(lines), capture_output=True, text=True, timeout=30, check=False
    )
    assert completed.returncode == 0, completed.stderr
    assert "x:" in completed.stdout


@pytest.mark.parametrize("text", ["a: !!python/object/apply:os.system [id]", "a: !!python/name:os.system", "a: !x 1"])
def test_yaml_creates_no_objects(text: str) -> None:
    with pytest.raises(JobError):
        parse_yaml(text, "x")


@pytest.fixture
def outside(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file outside of the workspace."""
    folder = tmp_path_factory.mktemp("outside")
    (folder / "secret.csv").write_text(f"secret\n{SECRET}\n")
    with duckdb.connect(folder / "secret.duckdb") as db:
        db.execute(f"create table s as select '{SECRET}' as secret")
    return folder


READING_SQL = [
    "(select secret from read_csv('OUT/secret.csv'))",
    "(select secret from 'OUT/secret.csv')",
    "(select content from read_text('OUT/secret.csv'))",
    "(select content::varchar from read_blob('OUT/secret.csv'))",
    "(select string_agg(file) from glob('OUT/*'))",
    "(select string_agg(column0) from read_csv('/etc/passwd', header=false, sep=':'))",
    "getenv('SECRET_VARIABLE')",
    "(select secret from sqlite_scan('OUT/secret.duckdb', 's'))",
    "(select 1 from read_csv('http://127.0.0.1:1/x.csv'))",
    "(select 1 from read_parquet('s3://bucket/x.parquet'))",
    "current_setting('secret_directory')",
    "(select string_agg(value) from duckdb_settings())",
    "(select string_agg(s) from duckdb_secrets() s)",
    "query('select 1')",
]
WRITING_SQL = [
    "copy (select 1) to 'OUT/written.csv'",
    "attach 'OUT/secret.duckdb' as other",
    "install httpfs",
    "load httpfs",
    "pragma database_list",
    "set enable_external_access = true",
    "call pragma_version()",
    "create table x as select 1",
    "export database 'OUT/dump'",
    "1); attach 'OUT/secret.duckdb' as other; select (1",
    "1; copy (select 1) to 'OUT/written.csv'",
]
HARMLESS_SQL = frozenset({"current_setting('secret_directory')", "(select string_agg(value) from duckdb_settings())"})
"""In a `sql:` source they return settings that the job file's author wrote or knows."""


def assert_nothing_leaked(workspace: Any, provider: Any, cli: Any, outside: Path) -> None:
    texts = json.dumps([body for _, body in provider.seen]) + cli.out + cli.err
    for path in workspace.folder.rglob("*"):
        if path.suffix == ".parquet" and path.is_file():
            texts += str(pq.read_table(path).to_pylist())
    assert SECRET not in texts
    assert "value-of-a-variable" not in texts
    assert "root:" not in texts
    assert sorted(path.name for path in outside.iterdir()) == ["secret.csv", "secret.duckdb"]
    assert "Traceback" not in cli.err


@pytest.mark.parametrize(
    ("place", "sql"),
    # A `when` is parsed as a `where` is.
    [
        pytest.param(place, sql, marks=marks(place == "when" and number % 3 > 0))
        for place in ("where", "when", "audit")
        for number, sql in enumerate(READING_SQL + WRITING_SQL)
    ],
)
def test_predicates_and_audits_open_no_files(
    workspace: Any, provider: Any, cli: Any, outside: Path, monkeypatch: pytest.MonkeyPatch, place: str, sql: str
) -> None:
    monkeypatch.setenv("SECRET_VARIABLE", "value-of-a-variable")
    sql = sql.replace("OUT", str(outside))
    workspace.csv(2)
    predicate = f"{sql} is not null" if sql.startswith("(") or "(" in sql.split("'")[0] else sql
    quoted = json.dumps(predicate)
    if place == "where":
        job = workspace.job(source=f"{{csv: rows.csv, key: id, where: {quoted}}}")
    elif place == "when":
        keys = 'endpoint: chat, provider: test, model: m, messages: [{user: "{{ text }}"}]'
        steps = f"[{{name: a, {keys}, when: {quoted}}}]"
        job = workspace.job(steps=steps)
    else:
        query = f"select {sql} as leaked" if sql in [one.replace("OUT", str(outside)) for one in READING_SQL] else sql
        job = workspace.job(audits=f"[{{name: x, sql: {json.dumps(query)}, max: 0}}]")
    code = cli("run", job)
    if place != "audit":
        assert code == 2 or sql in HARMLESS_SQL, cli.out
    else:
        assert code in (2, 5, 0)
    assert_nothing_leaked(workspace, provider, cli, outside)


@pytest.mark.parametrize("sql", READING_SQL + WRITING_SQL)
def test_a_sql_source_reads_only_below_the_workspace(
    workspace: Any, provider: Any, cli: Any, outside: Path, monkeypatch: pytest.MonkeyPatch, sql: str
) -> None:
    monkeypatch.setenv("SECRET_VARIABLE", "value-of-a-variable")
    query = sql.replace("OUT", str(outside))
    if sql in READING_SQL:
        query = f"select 1 as id, cast({query} as varchar) as text"
    assert cli("run", workspace.job(source=f"{{sql: {json.dumps(query)}, key: id}}")) in (
        (0, 2) if sql in HARMLESS_SQL else (2,)
    )
    assert_nothing_leaked(workspace, provider, cli, outside)


def test_a_sql_source_cannot_follow_a_link_out_of_the_workspace(
    workspace: Any, provider: Any, cli: Any, outside: Path
) -> None:
    (workspace.folder / "inside").symlink_to(outside)
    for path in ("inside/secret.csv", "inside/../inside/secret.csv", f"../{outside.name}/secret.csv", "inside/*.csv"):
        code = cli(
            "run", workspace.job(source=f"{{sql: \"select 1 as id, secret as text from read_csv('{path}')\", key: id}}")
        )
        assert code == 2, cli.out
        assert_nothing_leaked(workspace, provider, cli, outside)
