"""Help: a command group alone prints it, and it starts fast without any library that a run needs."""

import subprocess
import sys

import click
import pytest

from pipelines.cli import COMMANDS, exit_code_of, rowmill

HEAVY = ("duckdb", "numpy", "pyarrow", "pydantic", "aiohttp", "rich")
CODE = f"""
import sys
from pipelines.cli import exit_code_of
code = exit_code_of(["--help"])
print(sorted({{*{HEAVY!r}}} & set(sys.modules)))
sys.exit(code)
"""


def test_help_imports_no_heavy_library() -> None:
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def groups() -> list[str]:
    with click.Context(rowmill) as context:
        return [name for name in COMMANDS if isinstance(rowmill.get_command(context, name), click.Group)]


@pytest.mark.parametrize("name", ["", *groups()])
def test_a_group_without_a_command_prints_its_help_on_stdout(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    code = exit_code_of(name.split())
    printed = capsys.readouterr()
    assert exit_code_of([*name.split(), "--help"]) == 0
    assert (code, printed.out, printed.err) == (2, capsys.readouterr().out, "")
