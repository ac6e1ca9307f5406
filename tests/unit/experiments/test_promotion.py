"""Promotion: settings written into a job file whose comments and layout stay."""

from pathlib import Path
from typing import Any

import pytest

from pipelines.config.loaded_job import LoadedJob, load_job, read_job_file
from pipelines.experiments.combinations import Combination, Setting
from pipelines.experiments.promotion import Promotion, promote, write_promotion

JOB = """\
# The nightly labels.
name: labels
source: {csv: rows.csv, key: id}   # exported at two
steps:
  - name: label
    endpoint: chat
    provider: local
    model: gpt-4o-mini  # cheap
    messages:
      - system: |
          You label tickets.
          Be brief.
      - user: "{{ text }}"
    params: {temperature: 0, max_tokens: 20}
sink: {parquet: out/labels}
"""


@pytest.fixture
def loaded(tmp_path: Path) -> LoadedJob:
    (tmp_path / "rowmill.yaml").write_text("")
    (tmp_path / "labels.yaml").write_text(JOB)
    return load_job(tmp_path / "labels.yaml")


def promoted(loaded: LoadedJob, key: str, value: object) -> Promotion:
    return promote(loaded, Combination(1, (Setting(key, value),)))


def test_a_value_is_replaced_and_its_comment_stays(loaded: LoadedJob) -> None:
    new = promoted(loaded, "steps.label.model", "gpt-4o").new
    assert new == JOB.replace("gpt-4o-mini  # cheap", "gpt-4o  # cheap")


def test_a_value_in_a_flow_mapping_is_replaced(loaded: LoadedJob) -> None:
    new = promoted(loaded, "steps.label.params.temperature", 0.5).new
    assert new == JOB.replace("temperature: 0,", "temperature: 0.5,")


def test_a_text_of_several_lines_becomes_a_literal_block(loaded: LoadedJob) -> None:
    new = promoted(loaded, "steps.label.messages.0.system", "You sort mail.\n\nAnswer: one word.\n").new
    assert new == JOB.replace(
        "          You label tickets.\n          Be brief.\n",
        "          You sort mail.\n\n          Answer: one word.\n",
    )


@pytest.mark.parametrize("key", ["steps.label.model", "steps.label.messages.0.system", "steps.label.messages.1.user"])
@pytest.mark.parametrize(
    "text", ["a: b # c", "'", "null", "1e3", " padded ", "one\ntwo", "x\n\n", "tab\there\n", "ünï"]
)
def test_any_text_is_read_back_as_it_was(loaded: LoadedJob, key: str, text: str) -> None:
    write_promotion(loaded, promoted(loaded, key, text))
    found = job_values(loaded)["steps"][0]
    for part in key.split(".")[2:]:
        found = found[int(part) if part.isdigit() else part]
    assert found == text


@pytest.mark.parametrize(
    ("key", "value", "old", "new"),
    [
        ("params.seed", 7, "max_tokens: 20}", "max_tokens: 20, seed: 7}"),
        ("pack.rows", 5, "max_tokens: 20}\n", "max_tokens: 20}\n    pack: {rows: 5}\n"),
        ("params", {"stop": ["a: b", "x"]}, "{temperature: 0, max_tokens: 20}", '{stop: ["a: b", x]}'),
    ],
    ids=["in a flow mapping", "in a block mapping", "another mapping"],
)
def test_a_new_key_changes_no_other_line(loaded: LoadedJob, key: str, value: object, old: str, new: str) -> None:
    assert promoted(loaded, f"steps.label.{key}", value).new == JOB.replace(old, new)


def test_a_new_key_of_the_job_follows_the_last(loaded: LoadedJob) -> None:
    assert promoted(loaded, "budget.usd", 2).new == f"{JOB}budget: {{usd: 2}}\n"


def test_a_block_that_is_replaced_keeps_the_indents_and_comments_of_the_rest(tmp_path: Path) -> None:
    (tmp_path / "rowmill.yaml").write_text("")
    (tmp_path / "labels.yaml").write_text(
        "name: labels\nsource: {csv: rows.csv, key: id}\nsteps:\n- name: label  # one\n  endpoint: chat\n"
        "  provider: local\n  model: m\n  messages:\n  - user: x\n  params:  # each\n    temperature: 0\n"
        "sink: {parquet: out}\n"
    )
    promotion = promoted(load_job(tmp_path / "labels.yaml"), "steps.label.params", {"max_tokens": 5})
    lines = [line for line in promotion.diff.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert lines == ["-    temperature: 0", "+    max_tokens: 5"]


def test_a_mapping_replaces_a_mapping(loaded: LoadedJob) -> None:
    promotion = promoted(loaded, "steps.label.params", {"max_tokens": 5})
    write_promotion(loaded, promotion)
    assert job_values(loaded)["steps"][0]["params"] == {"max_tokens": 5}


def test_the_diff_shows_what_changes(loaded: LoadedJob) -> None:
    lines = promoted(loaded, "steps.label.model", "gpt-4o").diff.splitlines()
    assert [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")] == [
        "-    model: gpt-4o-mini  # cheap",
        "+    model: gpt-4o  # cheap",
    ]


def test_settings_that_the_file_has_already_make_no_diff(loaded: LoadedJob) -> None:
    assert promoted(loaded, "steps.label.model", "gpt-4o-mini").diff == ""


def job_values(loaded: LoadedJob) -> dict[str, Any]:
    """The values of the job file as it is now."""
    return read_job_file(loaded.path).content.values


def test_the_line_ends_and_the_mode_of_the_file_stay(loaded: LoadedJob) -> None:
    file = loaded.path
    file.write_bytes(JOB.replace("\n", "\r\n").encode())
    file.chmod(0o640)
    written = load_job(file)
    promotion = promoted(written, "steps.label.messages.0.system", "You sort mail.\nBe brief.\n")
    write_promotion(written, promotion)
    new = JOB.replace("You label tickets.", "You sort mail.")
    assert file.read_bytes() == new.replace("\n", "\r\n").encode()
    assert (promotion.diff.count("\n+ "), file.stat().st_mode & 0o777) == (1, 0o640)


SHARED = JOB.replace("params: {temperature", "params: &low {temperature").replace(
    "sink:",
    """\
  - name: again
    endpoint: chat
    provider: local
    model: gpt-4o  # dear
    messages: [{user: "{{ label }}"}]
    params: *low  # as above
sink:""",
)


@pytest.mark.parametrize(
    ("key", "changes"),
    [
        ("steps.again.params.temperature", {"*low": "{temperature: 1, max_tokens: 20}"}),
        (
            "steps.label.params.temperature",
            {"&low {temperature: 0,": "&low {temperature: 1,", "*low": "{temperature: 0, max_tokens: 20}"},
        ),
    ],
    ids=["alias", "anchor"],
)
def test_a_value_that_others_share_by_an_alias_changes_alone(
    loaded: LoadedJob, key: str, changes: dict[str, str]
) -> None:
    loaded.path.write_text(SHARED)
    expected = SHARED
    for old, new in changes.items():
        expected = expected.replace(old, new)
    assert promoted(load_job(loaded.path), key, 1).new == expected
