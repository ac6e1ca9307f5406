"""`rowmill --help` starts fast: it imports no library that a run needs."""

import subprocess
import sys

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
