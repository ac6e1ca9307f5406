"""Random job files and workspaces: each loads, or is rejected in one line; no other exception is raised."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from connectors.errors import JobError
from pipelines.config.loaded_job import LoadedJob, load_job
from pipelines.config.overrides import Overrides
from pipelines.config.workspace import Workspace, find_workspace
from pipelines.config.yaml_reader import parse_yaml

HERE = Path(__file__).parent
JOB = (HERE / "contract_job.yaml").read_text()
WORKSPACE = (HERE / "contract_workspace.yaml").read_text()
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])

FRAGMENTS = (
    "name source steps sink csv parquet key limits usd endpoint chat messages user output budget 5 -1 0.5 true ~ .nan "
    "[ ] { } : - , & * ! | > ' \" % @ ` # << &a *a \t \n \r \\ é 😀 \x85   --- ... ? !!str {{x}}"
)
WORDS = st.sampled_from(FRAGMENTS.split(" "))
RANDOM_TEXT = st.lists(
    st.one_of(WORDS, st.text(max_size=5), st.sampled_from([" ", "\n", "\n  ", ": "])), max_size=40
).map("".join)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(),
    st.text(max_size=8),
    st.sampled_from(["chat", "local", "merge", "all", "batch", "{{ x }}", "{% if", "https://a", "\x00", "a\nb"]),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=8,
)


@pytest.fixture(autouse=True)
def here(folder: Path) -> None:
    """Run each test in an empty folder."""


def loaded_or_none(load: Any) -> LoadedJob | Workspace | None:
    try:
        result: LoadedJob | Workspace = load()
    except JobError as exc:
        message = str(exc)
        assert message.isprintable(), message
        assert ": " in message, message
        assert "; " in message, message
        assert not any(word in message for word in ("pydantic", "Input should", "Value error", "validation")), message
        message.encode()
        return None
    return result


def paths_of(value: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(deeper for key, below in inner for deeper in paths_of(below, (*path, key)))]


def as_yaml(value: Any) -> str:
    """In the flow style of YAML, which is JSON with more numbers."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{as_yaml(key)}: {as_yaml(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(map(as_yaml, value)) + "]"
    if isinstance(value, str):
        return '"' + "".join(f"\\U{ord(char):08x}" if not char.isalnum() else char for char in value) + '"'
    if isinstance(value, float):
        return {"inf": ".inf", "-inf": "-.inf", "nan": ".nan"}.get(str(value), repr(value))
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if value != 1 or value is True else "1"


@QUICK
@given(RANDOM_TEXT)
def test_random_text_is_rejected_in_one_line(text: str) -> None:
    Path("jobs/x.yaml").write_text(text, newline="")
    assert loaded_or_none(lambda: load_job("jobs/x.yaml")) is None
    Path("rowmill.yaml").write_text(text, newline="")
    loaded_or_none(lambda: find_workspace("jobs/x.yaml"))


@QUICK
@given(st.binary(max_size=60))
def test_random_bytes_are_rejected_in_one_line(data: bytes) -> None:
    Path("jobs/x.yaml").write_bytes(data)
    assert loaded_or_none(lambda: load_job("jobs/x.yaml")) is None


@QUICK
@given(st.data())
def test_a_job_changed_anywhere_loads_or_is_rejected(data: st.DataObject) -> None:
    start = data.draw(st.integers(0, len(JOB)))
    end = data.draw(st.integers(start, min(len(JOB), start + 40)))
    Path("jobs/x.yaml").write_text(JOB[:start] + data.draw(RANDOM_TEXT) + JOB[end:], newline="")
    loaded_or_none(lambda: load_job("jobs/x.yaml"))


@pytest.mark.parametrize("text", [JOB, WORKSPACE], ids=["job", "workspace"])
@QUICK
@given(data=st.data())
def test_any_value_at_any_key_loads_or_is_rejected(text: str, data: st.DataObject) -> None:
    values = parse_yaml(text, "x").values
    path = data.draw(st.sampled_from(paths_of(values)[1:]))
    outer: Any = values
    for key in path[:-1]:
        outer = outer[key]
    match data.draw(st.sampled_from(["replace", "remove", "add"])):
        case "replace":
            outer[path[-1]] = data.draw(VALUES)
        case "remove":
            del outer[path[-1]]
        case _ if isinstance(outer, dict):
            outer[data.draw(st.text(max_size=8))] = data.draw(VALUES)
        case _:
            outer.append(data.draw(VALUES))
    file = Path("jobs/x.yaml" if text is JOB else "rowmill.yaml")
    file.write_text("\n".join(f"{as_yaml(key)}: {as_yaml(value)}" for key, value in values.items()), newline="")
    loaded_or_none(lambda: load_job(file) if text is JOB else find_workspace(file))


@QUICK
@given(
    key=st.one_of(
        st.text(max_size=12),
        st.sampled_from([".".join(map(str, path)) for path in paths_of(parse_yaml(JOB, "x").values)]),
    ),
    value=st.one_of(RANDOM_TEXT, VALUES.map(as_yaml)),
    limit=st.none() | st.integers(),
    provider=st.none() | st.text(max_size=5),
)
def test_any_flag_is_applied_or_rejected(key: str, value: str, limit: int | None, provider: str | None) -> None:
    Path("jobs/x.yaml").write_text(JOB)
    overrides = Overrides(assignments=(f"{key}={value}",), limit=limit, provider=provider)
    loaded_or_none(lambda: load_job("jobs/x.yaml", overrides))
