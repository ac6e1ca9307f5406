"""The pages for people: links resolve, commands parse, snippets are valid, key tables are current, lines are short."""

import ast
import importlib
import importlib.util
import itertools
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import click
import pytest
from ruamel.yaml import YAML

from pipelines.cli import rowmill
from pipelines.config.loaded_job import load_job
from pipelines.config.workspace import find_workspace
from pipelines.config.workspace_file import WorkspaceFile
from tests.conftest import Cli
from tests.docs.key_tables import generated_pages
from tests.support.shared_database import shared_cursor

ROOT = Path(__file__).parents[2]
README, JOBS, DOCS = ROOT / "README.md", ROOT / "jobs" / "README.md", ROOT / "jobs" / "docs"
CONTRIBUTING = ROOT / ".github" / "CONTRIBUTING.md"
STARTER = ROOT / "pipelines" / "starter" / "README.md"
PAGES = (
    README,
    JOBS,
    *sorted(DOCS.glob("*.md")),
    CONTRIBUTING,
    ROOT / ".github" / "SECURITY.md",
    ROOT / "jobs" / "data" / "README.md",
    STARTER,
)
MAX_LINE_LENGTH = 120
OUR_FOLDERS = ("connectors", "jobs", "notebooks", "pipelines", "tests")


@dataclass(frozen=True, slots=True)
class Snippet:
    """A fenced block of a page."""

    page: Path
    language: str
    text: str


def snippets_of(page: Path) -> Iterator[Snippet]:
    for language, text in re.findall(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL):
        yield Snippet(page, language, text)


SNIPPETS = [snippet for page in PAGES for snippet in snippets_of(page)]


def prose_of(page: Path) -> str:
    """The page without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def inline_code(page: Path) -> list[str]:
    """Every `…` of the prose; one may span two lines."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose_of(page))]


def name_of(value: object) -> str:
    """The id of a test."""
    if isinstance(value, Snippet):
        return f"{name_of(value.page)}:{value.text.split(chr(10))[0][:40]}"
    return str(value.relative_to(ROOT)) if isinstance(value, Path) else str(value)


def in_languages(*languages: str) -> pytest.MarkDecorator:
    found = [snippet for snippet in SNIPPETS if snippet.language in languages]
    assert found
    return pytest.mark.parametrize("snippet", found, ids=name_of)


each_page = pytest.mark.parametrize("page", PAGES, ids=name_of)


# Links and lines.


def anchors_of(page: Path) -> set[str]:
    """The anchors of the headings, as GitHub makes them."""
    anchors: dict[str, int] = {}
    found: set[str] = set()
    for heading in re.findall(r"^#+ (.*)$", prose_of(page), re.MULTILINE):
        anchor = re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")
        count = anchors.get(anchor, 0)
        anchors[anchor] = count + 1
        found.add(f"{anchor}-{count}" if count else anchor)
    return found


@each_page
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    for target in re.findall(r"\]\(([^)]+)\)", prose_of(page)):
        if target.startswith("https://"):
            continue
        file, _, anchor = target.partition("#")
        linked = (page.parent / file) if file else page
        assert linked.exists(), target
        if anchor:
            assert anchor in anchors_of(linked), target


@each_page
def test_no_line_is_longer_than_120_characters(page: Path) -> None:
    lines = page.read_text().splitlines()
    assert [f"{page}:{number}" for number, line in enumerate(lines, 1) if len(line) > MAX_LINE_LENGTH] == []


@each_page
def test_every_path_of_this_repository_that_a_page_names_exists(page: Path) -> None:
    # Of the starter, paths are those of the folder that `rowmill init` writes.
    if page == STARTER:
        return
    # Names of jobs that represent those of the reader.
    examples = re.compile(r"jobs/(x|mine|ticket-enrichment|other-prompt)\.yaml|jobs/out/.*")
    codes = [code for code in inline_code(page) if re.fullmatch(r"[\w./*{},-]+", code)]
    if page == CONTRIBUTING:
        # A listing of the tree: the first word of each line.
        codes += [line.split()[0] for snippet in SNIPPETS if snippet.page == page and snippet.language == "text"
                  for line in snippet.text.splitlines() if line.strip()]  # fmt: skip
    named = [code for code in codes if code.partition("/")[0] in OUR_FOLDERS and "/" in code.rstrip("/")]
    missing = [code for code in named if not examples.fullmatch(code) and not list(ROOT.glob(code.rstrip("/")))]
    assert missing == []


def test_the_jobs_page_links_every_job_and_every_reference_page() -> None:
    text = JOBS.read_text()
    targets = [path.name for path in JOBS.parent.glob("*.yaml")] + [f"docs/{path.name}" for path in DOCS.glob("*.md")]
    assert [target for target in targets if f"({target})" not in text] == []
    assert len(text.splitlines()) <= 250


def test_the_readme_links_every_reference_page() -> None:
    text = README.read_text()
    assert [path.name for path in DOCS.glob("*.md") if f"(jobs/docs/{path.name}" not in text] == []


def test_every_folder_in_the_tree_of_the_readme_exists() -> None:
    (tree,) = (one.text for one in SNIPPETS if one.page == README and one.text.startswith("jobs/ "))
    folder, folders = Path(), []
    for line in tree.splitlines():
        names = [word for word in line.split() if word.endswith("/")]
        if not line.startswith(" "):
            folder = ROOT / names[0]
        folders += [folder if not line.startswith(" ") else folder / name for name in names]
    assert [path for path in folders if not path.is_dir()] == []


def test_the_contributing_page_has_a_line_for_every_package() -> None:
    text = CONTRIBUTING.read_text()
    packages = [
        f"{top}/{path.parent.name}/"
        for top in ("connectors", "pipelines")
        for path in sorted((ROOT / top).glob("*/__init__.py"))
    ]
    assert [package for package in packages if not re.search(rf"^{package}\s+\S", text, re.MULTILINE)] == []


def test_the_key_tables_are_those_of_the_schemas() -> None:
    stale = [page.name for page, text in generated_pages().items() if page.read_text() != text]
    assert stale == [], "run: python -m tests.docs.key_tables"


# Commands.


def all_commands() -> Iterator[tuple[str, click.Command, click.Context]]:
    """Every command with its path, subcommands included."""

    def below(
        group: click.Group, context: click.Context, path: str
    ) -> Iterator[tuple[str, click.Command, click.Context]]:
        for name in group.list_commands(context):
            command = group.get_command(context, name)
            assert command is not None
            own = click.Context(command, info_name=name, parent=context)
            yield f"{path} {name}", command, own
            if isinstance(command, click.Group):
                yield from below(command, own, f"{path} {name}")

    yield from below(rowmill, click.Context(rowmill, info_name="rowmill"), "rowmill")


COMMANDS = list(all_commands())


def resolve(words: list[str]) -> tuple[click.Command, click.Context, list[str]]:
    """The command of `rowmill WORDS` and its arguments."""
    context = click.Context(rowmill, info_name="rowmill")
    command: click.Command = rowmill
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        subcommand = command.get_command(context, words[0])
        assert subcommand is not None, f"{words[0]}: no such command"
        command, words = subcommand, words[1:]
    return command, context, words


def shell_lines(page: Path) -> list[str]:
    """The commands of the page's shell blocks, without comments, one each."""
    text = "".join(snippet.text for snippet in SNIPPETS if snippet.page == page and snippet.language == "sh")
    text = re.sub(r"\s# .*", "", text)
    return [part.strip() for line in text.splitlines() for part in re.split(r"&&|\| ", line) if part.strip()]


def example_commands() -> list[str]:
    """Every `rowmill …` in the shell blocks of the pages and in the examples of --help."""
    lines = [line for page in PAGES for line in shell_lines(page)]
    lines += [line for _, command, _ in COMMANDS for line in (command.help or "").splitlines() if " rowmill " in line]
    parts = [part.split(" > ")[0].strip() for line in lines for part in re.split(r"&&|\|", line)]
    prefix = re.compile(r"([A-Z_]+=\S+ )?(\.venv/bin/)?rowmill ")
    return sorted({part.partition("rowmill ")[2] for part in parts if prefix.match(part)})


@pytest.mark.parametrize("words", example_commands())
def test_every_example_command_parses(words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # A file to upload must exist.
    (tmp_path / "requests.jsonl").write_text("{}")
    monkeypatch.chdir(tmp_path)
    command, context, arguments = resolve(shlex.split(words))
    command.make_context(command.name, arguments, parent=context)


@each_page
def test_every_command_in_the_prose_exists_with_its_options(page: Path) -> None:
    for code in inline_code(page):
        if not code.startswith("rowmill "):
            continue
        command, _, arguments = resolve(code.replace("\\|", " ").split()[1:])
        options = {name for parameter in command.params for name in parameter.opts} | {"--help"}
        named = [word for word in arguments if word.startswith("-")]
        assert [word for word in named if word not in options] == [], code


@each_page
def test_every_python_and_pytest_command_names_something_that_exists(page: Path) -> None:
    markers = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]["markers"]
    known = {marker.partition(":")[0] for marker in markers}
    for line in [*shell_lines(page), *inline_code(page)]:
        words = line.removeprefix(".venv/bin/").split()
        if words[0] == "pytest":
            assert all(word in known for flag, word in itertools.pairwise(words) if flag == "-m"), line
        if words[0] in ("python", "pytest"):
            files = [word.partition("::")[0] for word in words if word.startswith("tests/")]
            assert [file for file in files if not (ROOT / file).exists()] == [], line
        if words[:2] == ["python", "-m"] and words[2].startswith("tests."):
            assert importlib.util.find_spec(words[2]), line


@pytest.mark.parametrize(("path", "command", "context"), COMMANDS, ids=[path for path, *_ in COMMANDS])
def test_the_help_of_every_command_has_an_example_and_describes_each_option(
    path: str, command: click.Command, context: click.Context
) -> None:
    text = command.get_help(context)
    assert re.search(r"^  Examples?:\n +rowmill ", text, re.MULTILINE), f"{path} --help has no example"
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{path} {parameter.opts[0]} has no help"


@pytest.mark.parametrize("page", [README, DOCS / "commands.md"], ids=name_of)
def test_the_page_lists_every_command(page: Path) -> None:
    text = page.read_text()
    missing = [path for path, _, _ in COMMANDS if path.count(" ") == 1 and f"`{path.split()[1]}" not in text
               and f"`{path}" not in text]  # fmt: skip
    assert missing == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("rum", "job.yaml"), "rowmill rum: no such command; did you mean run?\n"),
        (("run", "job.yaml", "--limt", "3"), "; did you mean --limit, --quiet?"),
        (("schedule", "shwo"), "rowmill schedule: No such command 'shwo'; did you mean show?\n"),
        (("plan",), "rowmill plan: Missing argument 'JOB...'; write e.g. jobs/chat-tools.yaml\n"),
    ],
)
def test_a_wrong_command_gets_one_line_with_a_suggestion(cli: Cli, given: tuple[str, ...], message: str) -> None:
    assert cli(*given) == 2
    assert cli.out == ""
    assert cli.err.count("\n") == 1
    assert message.lower() in cli.err.lower()


# Snippets.


def check_command(arguments: list[str]) -> None:
    """Parse the arguments of `rowmill` without running it."""
    command, context, rest = resolve(arguments)
    command.make_context(command.name, rest, parent=context)


@in_languages("dockerfile")
def test_the_dockerfile_starts_commands_that_exist(snippet: Snippet) -> None:
    (entry,), (command,) = (re.findall(rf"^{word} (.*)$", snippet.text, re.MULTILINE) for word in ("ENTRYPOINT", "CMD"))
    assert json.loads(entry) == ["rowmill"]
    check_command(json.loads(command))


@in_languages("ini")
def test_the_systemd_unit_starts_a_command_that_exists(snippet: Snippet) -> None:
    (line,) = re.findall(r"^ExecStart=\S+/rowmill (.*)$", snippet.text, re.MULTILINE)
    check_command(shlex.split(line))


@in_languages("yaml")
def test_every_yaml_snippet_is_a_valid_job_workspace_or_part_of_one(snippet: Snippet, tmp_path: Path) -> None:
    values = YAML(typ="safe").load(snippet.text)
    assert isinstance(values, dict)
    if values.get("kind") == "CronJob":
        pod = values["spec"]["jobTemplate"]["spec"]["template"]["spec"]
        (container,) = pod["containers"]
        check_command(container["args"])
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
    elif set(values) <= set(WorkspaceFile.model_fields):
        (tmp_path / "rowmill.yaml").write_text(snippet.text)
        assert find_workspace(tmp_path).has_file
    elif "steps" in values:
        (tmp_path / "job.yaml").write_text(snippet.text)
        for folder in ("prompts", "schemas"):
            (tmp_path / folder).symlink_to(JOBS.parent / folder)
        (tmp_path / "rowmill.yaml").write_text(f"roots: [{JOBS.parent}]")
        assert load_job(tmp_path / "job.yaml").job.name == values["name"]
    elif "audits" in values:
        (tmp_path / "job.yaml").write_text(
            "name: job\nsource: {csv: rows.csv, key: id}\n"
            "steps: [{name: vector, endpoint: embeddings, provider: local, model: m, input: text}]\n"
            f"sink: {{parquet: out}}\n{snippet.text}"
        )
        assert len(load_job(tmp_path / "job.yaml").job.audits) == len(values["audits"])
    else:
        # The examples of the key tables, which belong to the keys of one section.
        assert snippet.page in generated_pages()


def test_the_job_file_of_the_readme_has_the_two_steps_that_it_describes(tmp_path: Path) -> None:
    text, *_ = (one.text for one in SNIPPETS if one.page == README and one.text.startswith("name:"))
    (tmp_path / "job.yaml").write_text(text)
    assert [step.name for step in load_job(tmp_path / "job.yaml").job.steps] == ["label", "vector"]


def test_the_quickstart_on_the_jobs_page_is_the_one_in_the_folder(tmp_path: Path) -> None:
    (text,) = (one.text for one in SNIPPETS if one.page == JOBS and one.text.startswith("name:"))
    yaml = YAML(typ="safe")
    shipped = yaml.load((JOBS.parent / "quickstart.yaml").read_text())
    del shipped["description"]
    assert yaml.load(text) == shipped


@in_languages("python")
def test_every_python_snippet_compiles_and_imports_what_exists(snippet: Snippet) -> None:
    code = compile(snippet.text, str(snippet.page), "exec", ast.PyCF_ONLY_AST | ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    assert isinstance(code, ast.Module)
    for node in ast.walk(code):
        names = [node.module] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        for name in names:
            top = str(name).partition(".")[0]
            # Airflow and Dagster are not installed; test_orchestrators.py runs these snippets with fakes.
            if top in ("pipelines", "connectors") or top in sys.stdlib_module_names:
                module = importlib.import_module(str(name))
                imported = [alias.name for alias in node.names] if isinstance(node, ast.ImportFrom) else []
                assert [one for one in imported if not hasattr(module, one)] == []


@pytest.mark.parametrize(
    "sql",
    [sql for snippet in SNIPPETS if snippet.language == "sql" for sql in snippet.text.split(";\n") if sql.strip()],
)
def test_every_sql_snippet_parses_in_duckdb(sql: str) -> None:
    with shared_cursor() as db:
        ((parsed,),) = db.execute("select json_serialize_sql(?)", [sql]).fetchall()
    assert '"error":false' in parsed


def test_init_writes_a_job_that_editors_can_check(cli: Cli, tmp_path: Path) -> None:
    assert cli("init", tmp_path / "mine") == 0
    first_line = (tmp_path / "mine/jobs/quickstart.yaml").read_text().splitlines()[0]
    assert first_line.startswith("# yaml-language-server: $schema=")
    schema = tmp_path / "mine/jobs" / first_line.partition("=")[2]
    assert '"$schema"' in schema.read_text()


def test_every_class_that_contributing_names_exists() -> None:
    sources = "\n".join(
        path.read_text() for folder in ("connectors", "pipelines") for path in (ROOT / folder).rglob("*.py")
    )
    names = set(re.findall(r"`([A-Z][a-z]+[A-Z][A-Za-z]*)`", prose_of(CONTRIBUTING)))
    assert names
    assert {name for name in names if not re.search(rf"^class {name}\b", sources, re.MULTILINE)} == set()
