"""The rules of the tree: import layers, circles, first lines, folder sizes, types and lint."""

import ast
import functools
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("pipelines", "connectors")

LAYERS = (
    ("connectors.error_classes", "connectors.errors", "connectors.request_fingerprint"),
    (
        *("connectors.optional_packages", "connectors.records", "connectors.tokens"),
        *("pipelines.formatting", "pipelines.pricing"),
    ),
    ("connectors.contracts", "connectors.sql", "connectors.storage", "connectors.templating"),
    ("connectors.media", "connectors.sources", "connectors.tables"),
    ("connectors.documents", "connectors.emulator", "connectors.sinks", "connectors.transport", "pipelines.ledger"),
    ("connectors.endpoints", "pipelines.limits"),
    ("connectors.registry",),
    ("pipelines.config",),
    ("pipelines.quality", "pipelines.runtime", "pipelines.transforms"),
    ("pipelines.preparation",),
    ("pipelines.dispatch",),
    ("pipelines.batch", "pipelines.monitoring"),
    ("pipelines.analysis", "pipelines.control", "pipelines.engines"),
    ("pipelines.reporting",),
    ("pipelines.maintenance", "pipelines.schedule"),
    ("pipelines.execution",),
    (
        *("pipelines.cli", "pipelines.dashboard", "pipelines.experiments", "pipelines.planning"),
        "pipelines.python_api",
    ),
    ("pipelines.commands",),
)
"""Packages and top-level modules, lowest layer first: a package imports only from layers below its own."""

LAYER_OF = {package: layer for layer, packages in enumerate(LAYERS) for package in packages}

MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """`pipelines.limits` of `pipelines.limits.token_bucket`."""
    return ".".join(module.split(".")[:2])


NAMES = {module_name(path) for path in MODULES}


@functools.cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


@functools.cache
def imports_of(path: Path) -> frozenset[str]:
    """Every module of ours that the file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            assert node.module is not None
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                found.add(whole if whole in NAMES else node.module)
    return frozenset(name for name in found if name.split(".")[0] in PACKAGES and name not in PACKAGES)


@pytest.mark.parametrize("path", MODULES, ids=[module_name(path) for path in MODULES])
def test_a_module_imports_only_from_its_own_package_and_the_layers_below(path: Path) -> None:
    module = module_name(path)
    if module in PACKAGES:
        return
    mine = package_of(module)
    for imported in imports_of(path):
        theirs = package_of(imported)
        if theirs != mine:
            assert LAYER_OF[theirs] < LAYER_OF[mine], f"{module} imports {imported}, which is no layer below it"


def test_connectors_import_nothing_of_pipelines() -> None:
    for path in MODULES:
        if module_name(path).startswith("connectors"):
            assert not [name for name in imports_of(path) if name.startswith("pipelines")], path


def test_sources_sinks_endpoints_and_the_emulator_never_import_one_another() -> None:
    rooms = {"connectors.sources", "connectors.sinks", "connectors.endpoints", "connectors.emulator"}
    for path in MODULES:
        mine = package_of(module_name(path))
        if mine in rooms:
            assert not [name for name in imports_of(path) if package_of(name) in rooms - {mine}], path


@pytest.mark.parametrize("folder", ["sources", "sinks", "endpoints"])
def test_modules_of_a_registry_do_not_import_their_neighbours(folder: str) -> None:
    """A source, a sink or an endpoint is one file; what several share lies in a package or in a helper module."""
    registered = {name for name in imports_of(ROOT / "connectors" / "registry.py") if f".{folder}." in name}
    for module in registered:
        path = ROOT / Path(*module.split(".")).with_suffix(".py")
        assert not imports_of(path) & registered, module


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
def test_the_first_line_of_a_module_names_its_subject(path: Path) -> None:
    docstring = ast.get_docstring(tree_of(path))
    assert docstring, f"{path} has no docstring"
    assert docstring.splitlines()[0].endswith((".", ":")), docstring.splitlines()[0]


def test_a_folder_holds_at_most_16_modules() -> None:
    counts: dict[Path, int] = {}
    for path in MODULES:
        if path.name != "__init__.py":
            counts[path.parent] = counts.get(path.parent, 0) + 1
    assert {str(folder): count for folder, count in counts.items() if count > 16} == {}


def test_ruff_finds_nothing() -> None:
    subprocess.run([sys.executable, "-m", "ruff", "check", "."], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "-m", "ruff", "format", "--check", "."], cwd=ROOT, check=True)


def test_mypy_strict_finds_nothing() -> None:
    subprocess.run([sys.executable, "-m", "mypy"], cwd=ROOT, check=True)
