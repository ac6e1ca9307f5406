"""Prompts in files: where they may take the place of a text, and which files are refused."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from connectors.errors import JobError
from pipelines.config.included_files.prompt_files import prompt_references
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides
from pipelines.preparation.prepared_job import with_location

JOB = """\
name: small
source: {csv: rows.csv}
steps:
  - name: label
    endpoint: chat
    model: m
    messages:
      - system: {file: prompts/system.md}
      - user: [{text: {file: prompts/user.md}}, {image: picture}]
sink: {parquet: out}
"""
FILE = {"file": "p.md"}


@pytest.fixture(autouse=True)
def prompts(folder: Path) -> Path:
    (folder / "rowmill.yaml").write_text("")
    (folder / "prompts").mkdir()
    (folder / "prompts/system.md").write_text("You label tickets.\n")
    (folder / "prompts/user.md").write_text("{{ text }}")
    return folder / "prompts"


def messages(loaded: LoadedJob) -> Any:
    return getattr(loaded.job.steps[0], "messages")  # noqa: B009 - of some steps


def test_a_file_takes_the_place_of_a_text(load: Callable[..., LoadedJob]) -> None:
    assert messages(load(JOB)) == (
        {"system": "You label tickets.\n"},
        {"user": [{"text": "{{ text }}"}, {"image": "picture"}]},
    )


def test_a_checkout_on_windows_is_the_same_job(load: Callable[..., LoadedJob], prompts: Path) -> None:
    loaded = load(JOB)
    (prompts / "system.md").write_bytes(b"\xef\xbb\xbfYou label tickets.\r\n")
    assert load(JOB).job == loaded.job


def test_a_file_is_read_once(load: Callable[..., LoadedJob], prompts: Path) -> None:
    loaded = load(JOB)
    (prompts / "system.md").unlink()
    assert messages(loaded.with_overrides(Overrides(limit=3))) == messages(loaded)
    assert messages(pickle.loads(pickle.dumps(loaded))) == messages(loaded)


def test_a_flag_may_name_another_file(load: Callable[..., LoadedJob], prompts: Path) -> None:
    (prompts / "b.md").write_text("B")
    for key in (
        "steps.label.messages.0.system={file: prompts/b.md}",
        "steps.label.messages.0.system.file=prompts/b.md",
    ):
        loaded = load(JOB, Overrides((key,)))
        assert messages(loaded)[0] == {"system": "B"}
        assert loaded.changed_by


@pytest.mark.parametrize(
    ("step", "paths"),
    [
        ({"input": FILE, "instructions": FILE}, [("input",), ("instructions",)]),
        ({"prompt": FILE, "params": {"instructions": FILE}}, [("prompt",), ("params", "instructions")]),
        ({"rescue": [{"params": {"instructions": FILE}}]}, [("rescue", 0, "params", "instructions")]),
        ({"messages": [{"role": "user", "content": FILE}]}, [("messages", 0, "content")]),
        ({"input": [{"type": "message", "role": "user", "content": FILE}]}, [("input", 0, "content")]),
        # A document is no prompt, nor is a file that a call or the API names.
        ({"messages": [{"user": [FILE, {"type": "file", "file": {"file_id": "x"}}]}]}, []),
        ({"messages": [{"role": "assistant", "tool_calls": [{"id": "1", "name": "n", "arguments": FILE}]}]}, []),
        ({"file": "audio", "extra_body": {"prompt": FILE}, "tools": [FILE]}, []),
    ],
    ids=["input", "params", "rung", "content", "item", "document", "call", "other-keys"],
)
def test_files_are_texts_in_these_places_only(step: dict[str, Any], paths: list[Any]) -> None:
    assert [path for path, _ in prompt_references(step)] == paths


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "jobs/x.yaml:8: steps.label.messages.0.system.file: prompts/system.md is empty; write its text"),
        (b" \r\n", "jobs/x.yaml:8: steps.label.messages.0.system.file: prompts/system.md is empty; write its text"),
        (b"a\nb\xff", "prompts/system.md:2: not UTF-8 text; save the file as UTF-8"),
        (b"a\n\0", "prompts/system.md:2: a control character (code 0); delete it"),
        (b"a" * 1_000_001, "prompts/system.md: larger than 1 MB; split it"),
    ],
    ids=["empty", "blank", "latin-1", "control", "large"],
)
def test_a_file_without_a_text_is_refused(
    load_error: Callable[..., str], prompts: Path, content: bytes, message: str
) -> None:
    (prompts / "system.md").write_bytes(content)
    assert load_error(JOB).startswith(message)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("prompts/system.md", "prompts/no.md", ".0.system.file: prompts/no.md: no such file; the path starts at /"),
        ("prompts/system.md", "prompts", ".0.system.file: prompts is a folder; name a text file"),
        ("prompts/system.md", "5", ".0.system.file: found 5, expected a path; write e.g. prompts/label.md"),
        (
            "system: {file: prompts/system.md}",
            "file: a.md",
            ".0: a file is a text, not a message; write user: {file: a",
        ),
        (
            "file: prompts/system.md",
            "file: prompts/system.md, x: 1",
            ".0.system.x: {file: PATH} takes the place of a text and has no other key; delete it",
        ),
    ],
    ids=["missing", "folder", "number", "message", "other-key"],
)
def test_a_name_that_is_no_file_is_refused(
    load_error: Callable[..., str], prompts: Path, old: str, new: str, message: str
) -> None:
    assert load_error(JOB.replace(old, new)).startswith(f"jobs/x.yaml:8: steps.label.messages{message}")


def test_messages_as_a_whole_are_no_text(load_error: Callable[..., str]) -> None:
    job = JOB.split("    messages:")[0] + "    messages: {file: prompts/user.md}\nsink: {parquet: out}\n"
    assert load_error(job) == (
        "jobs/x.yaml:7: steps.label.messages: prompts/user.md is a text, and messages are a list; "
        "write messages: [{user: {file: prompts/user.md}}]"
    )


def test_prompts_may_be_anywhere_as_other_paths_of_the_author(
    load: Callable[..., LoadedJob], prompts: Path, tmp_path: Path
) -> None:
    shared = tmp_path.parent / f"{tmp_path.name}-shared"
    shared.mkdir()
    (shared / "system.md").write_text("shared")
    (prompts / "link.md").symlink_to(shared / "system.md")
    for name in (f"{shared}/system.md", f"../{shared.name}/system.md", "prompts/link.md"):
        assert messages(load(JOB.replace("prompts/system.md", name)))[0] == {"system": "shared"}


def test_an_error_within_a_prompt_names_the_file_and_the_line(load: Callable[..., LoadedJob]) -> None:
    loaded = load(JOB)
    with pytest.raises(JobError) as caught, with_location(loaded):
        raise JobError(("steps", "label", "messages", 0, "system"), "no column x here", "correct it", text_line=3)
    assert str(caught.value) == "prompts/system.md:3: steps.label.messages.0.system: no column x here; correct it"
    assert loaded.locate("steps", "label", "messages", 1) == "jobs/x.yaml:9: steps.label.messages.1"
