"""Rules for jobs that use the Batch API, and the next deadline."""

from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from connectors.errors import JobError
from pipelines.config.batch_rules import check_batch_delivery, next_deadline
from pipelines.config.loaded_job import LoadedJob
from pipelines.config.overrides import Overrides

JOB = """\
name: small
source: {csv: rows.csv}
steps:
  - {name: label, endpoint: chat, model: m, messages: [{user: "{{ text }}"}]}
sink: {parquet: out}
"""
SPEECH = 'endpoint: speech, model: m, voice: alloy, input: "{{ text }}"'
BATCH = Overrides(delivery="batch")


def test_a_chat_job_can_be_delivered_in_batches(load: Callable[..., LoadedJob]) -> None:
    check_batch_delivery(load(JOB, BATCH))


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            f"- {{name: label, {SPEECH}}}",
            "endpoint: the Batch API takes chat, embeddings, responses only; "
            "write delivery: online, or move this step to a separate job",
        ),
        (
            '- {name: label, endpoint: chat, provider: pool, model: m, messages: [{user: "{{ text }}"}]}',
            "provider: pool is a pool, and a batch goes to one provider; name one of its members: openai, box",
        ),
        (
            '- {name: label, endpoint: chat, model: m, stream: true, messages: [{user: "{{ text }}"}]}',
            "stream: a batch's answers do not stream; leave stream out, or write delivery: online",
        ),
    ],
)
def test_a_step_that_batches_cannot_take_is_rejected(
    load: Callable[..., LoadedJob], folder: Path, step: str, message: str
) -> None:
    (folder / "rowmill.yaml").write_text(
        "providers:\n  box: {base_url: http://localhost/v1}\n  pool: {members: [openai, box]}\n"
    )
    text = JOB.replace(JOB.splitlines()[3].strip(), step)
    check_batch_delivery(load(text))
    with pytest.raises(JobError) as caught:
        check_batch_delivery(load(text, BATCH))
    assert str(caught.value) == f"jobs/x.yaml:4: steps.label.{message}"


def test_the_next_deadline_is_today_or_tomorrow_in_the_zone() -> None:
    berlin = ZoneInfo("Europe/Berlin")
    evening = datetime(2026, 1, 28, 22, 0, tzinfo=UTC)
    assert next_deadline("23:30", berlin, evening) == datetime(2026, 1, 28, 22, 30, tzinfo=UTC)
    assert next_deadline("06:00", berlin, evening) == datetime(2026, 1, 29, 5, 0, tzinfo=UTC)
    assert next_deadline("23:00", berlin, evening) == datetime(2026, 1, 29, 22, 0, tzinfo=UTC)
