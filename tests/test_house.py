"""The house rules: floors, sizes, types and lint hold for every file."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "connectors")

FLOOR_OF = {
    "connectors.records": 1,
    "connectors.templating.template": 1,
    "connectors.errors": 1,
    "connectors.tokens": 1,
    "pipelines.pricing.prices": 1,
    "connectors.registry": 4,
    "connectors": 2,
    "connectors.endpoints": 3,
    "connectors.sources": 3,
    "connectors.sinks": 3,
    "connectors.emulator": 3,
    "pipelines": 5,
    "pipelines.cli": 6,
    "pipelines.commands": 6,
}
"""A module's floor is that of its longest prefix here."""

ROOMS = ("connectors.endpoints", "connectors.sources", "connectors.sinks", "connectors.emulator")
"""On floor 3, each module belongs to one room: rooms never import one another, nor do their files, but in `local`."""

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        prefix = ".".join(parts[:length])
        if prefix in FLOOR_OF:
            return FLOOR_OF[prefix]
    raise AssertionError(f"{module} is on no floor")


NAMES = {module_name(path) for path in MODULES}


def imports_of(path: Path) -> set[str]:
    """Every module of ours that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in NAMES else node.module)
    return {name for name in found if name.split(".")[0] in PACKAGES and name not in PACKAGES}


def room_of(module: str) -> str | None:
    return next((room for room in ROOMS if module == room or module.startswith(room + ".")), None)


@pytest.mark.parametrize("path", MODULES, ids=[module_name(path) for path in MODULES])
def test_a_module_imports_only_from_floors_below_or_its_own_without_circles(path: Path) -> None:
    module = module_name(path)
    for imported in imports_of(path):
        assert floor(imported) <= floor(module), f"{module} (floor {floor(module)}) imports {imported}"
        mine, theirs = room_of(module), room_of(imported)
        if mine and theirs:
            assert mine == theirs, f"{module} imports from another room: {imported}"


def test_no_module_imports_itself_through_others() -> None:
    graph = {module_name(path): imports_of(path) for path in MODULES}
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, f"a circle: {' -> '.join((*trail, module))}"
        if module not in done:
            for imported in sorted(graph.get(module, ())):
                visit(imported, (*trail, module))
            done.add(module)

    for module in sorted(graph):
        visit(module, ())


@pytest.mark.parametrize("path", MODULES, ids=[module_name(path) for path in MODULES])
def test_a_module_is_at_most_400_lines_and_says_its_subject_in_its_first_line(path: Path) -> None:
    text = path.read_text()
    assert text.count("\n") <= 400
    if text.strip():
        docstring = ast.get_docstring(ast.parse(text))
        assert docstring, f"{path.name} has no docstring"
        assert docstring.splitlines()[0].endswith((".", ":", "?")), docstring.splitlines()[0]


def test_modules_shadow_nothing_that_people_import() -> None:
    taken = sys.stdlib_module_names | {"duckdb", "polars", "pyarrow", "openai", "click", "aiohttp"}
    assert not {path.stem for path in MODULES if path.stem != "__init__"} & taken


def test_ruff_finds_nothing() -> None:
    subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "."], cwd=ROOT, check=True)


def test_mypy_strict_finds_nothing() -> None:
    subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, check=True)
