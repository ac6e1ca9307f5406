"""Prompts and output schemas in files: whole runs, whose fingerprints are made of the content."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipelines import Job, run
from tests.conftest import Body, Cli, ReadTable, ScriptedProvider, Workspace, chat_reply

SYSTEM = "You label tickets.\nBe brief.\n"
TOPIC = {"type": "string", "enum": ["billing", "other"]}
INLINE = f"""
  - name: answer
    endpoint: chat
    provider: test
    model: m
    messages:
      - system: {json.dumps(SYSTEM)}
      - user: "Text: {{{{ text }}}}"
    output: {{topic: {json.dumps(TOPIC)}}}
"""
IN_FILES = """
  - name: answer
    endpoint: chat
    provider: test
    model: m
    messages:
      - system: {file: prompts/system.md}
      - user: {file: prompts/user.md}
    output_schema: schemas/ticket.json
"""


@pytest.fixture
def files(workspace: Workspace, provider: ScriptedProvider) -> Workspace:
    """Three rows, and the prompts and the schema of the step in files; every answer is `billing`."""
    workspace.csv(3)
    workspace.write("prompts/system.md", SYSTEM)
    workspace.write("prompts/user.md", "Text: {{ text }}")
    schema = {"type": "object", "properties": {"topic": {"$ref": "#/$defs/topic"}}, "$defs": {"topic": TOPIC}}
    workspace.write("schemas/ticket.json", json.dumps(schema, indent="\t"))
    provider.script = lambda path, body, count: chat_reply('{"topic": "billing"}')
    return workspace


def test_moving_texts_and_outputs_to_files_requests_nothing(
    files: Workspace, provider: ScriptedProvider, cli: Cli, read: ReadTable
) -> None:
    assert cli.run(files.job(steps=INLINE))["requests"] == 3
    before = read(files.folder / "out")
    job = files.job(steps=IN_FILES)
    for text in (SYSTEM, SYSTEM.replace("\n", "\r\n")):
        (files.folder / "prompts/system.md").write_bytes(text.encode())
        report = cli.run(job)
        assert (report["exit_code"], report["rows_ok"], report["requests"]) == (0, 3, 0), cli.err
    assert read(files.folder / "out") == before
    assert provider.seen[0][1]["messages"][0] == {"role": "system", "content": SYSTEM}
    files.write("prompts/system.md", "You sort mail.")
    assert cli.run(job)["requests"] == 3


def test_validate_names_the_file_and_the_line_of_a_mistake(files: Workspace, cli: Cli) -> None:
    job = files.job(steps=IN_FILES)
    assert cli("validate", job) == 0, cli.err
    files.write("prompts/user.md", "Text:\n\n{{ txt }}\n")
    assert cli("validate", job) == 2
    assert cli.err == "prompts/user.md:3: steps.answer.messages.1.user: no column txt here; did you mean text?\n"
    files.write("prompts/user.md", "{% if text %}\n{{ text | uper }}{% endif %}\n")
    assert cli("plan", job) == 2
    assert cli.err.startswith("prompts/user.md:2: steps.answer.messages.1.user: no filter uper; write one of Jinja's")
    files.write("prompts/user.md", "{% if text %}\n{{ text }\n")
    assert cli("run", job) == 2
    assert cli.err.startswith("prompts/user.md:2: steps.answer.messages.1.user: the template cannot be read: syntax")
    files.write("prompts/user.md", "{{ text }}")
    files.write("schemas/ticket.json", '{"properties": {\n"topic": {\n"type": "text"}}}')
    assert cli("validate", job) == 2
    assert cli.err.startswith("schemas/ticket.json:3: properties.topic.type: found 'text'; write one of string")


def test_python_keeps_the_names_and_reads_the_files_of_the_workspace(
    files: Workspace, provider: ScriptedProvider
) -> None:
    step: dict[str, Any] = YAML(typ="safe", pure=True).load(IN_FILES)[0]
    job = Job.model_validate(
        {"name": "j", "source": {"csv": "rows.csv", "key": "id"}, "steps": [step], "sink": {"parquet": "out"}}
    )
    assert "{file: prompts/user.md}" in job.to_yaml()
    assert "output_schema: schemas/ticket.json" in job.to_yaml()
    report = asyncio.run(run(job, workspace=files.folder))
    assert (report.rows_ok, report.requests, provider.prompts()[0][:6]) == (3, 3, "Text: ")


def test_try_compares_prompts_and_promotes_the_file(
    files: Workspace, provider: ScriptedProvider, cli: Cli, monkeypatch: pytest.MonkeyPatch
) -> None:
    def script(path: str, body: Body, count: int) -> Body:
        is_good = body["messages"][0]["content"] == "Good."
        return chat_reply('{"topic": "billing"}' if is_good else '{"topic": "other"}')

    provider.script = script
    monkeypatch.chdir(files.folder)
    files.write("rows.csv", "id,text,topic\n" + "".join(f"{n},text {n},billing\n" for n in range(4)))
    files.write("prompts/system.md", "Bad.")
    files.write("prompts/system2.md", "Good.\r\n".strip())
    job = files.job(steps=IN_FILES)
    flags = ("--over", "steps.answer.messages.0.system=@prompts/system*.md", "--expect", "topic=topic", "--json")
    assert cli("try", job, *flags) == 0, cli.err
    assert [json.loads(line)["right"] for line in cli.out.splitlines()] == [0, 1]
    assert cli("try", job, *flags[:-1], "--promote", "2") == 0, cli.err
    assert "system: {file: prompts/system2.md}" in Path(job).read_text()
    assert len(provider.seen) == 8
    assert cli.run(job)["requests"] == 0
