"""Locks on jobs and sinks: one process each, and what is said of their holder."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from connectors.errors import Locked
from pipelines.runtime import locks
from pipelines.runtime.locks import is_running, job_lock, ray_writer_lock, sink_lock, wait_for_ray_writers


@pytest.fixture
def held_job(tmp_path: Path) -> Iterator[str]:
    """A job whose lock is held, with the text of process 4711."""
    path = tmp_path / "locks" / "held.lock"
    path.parent.mkdir()
    path.write_text("4711")
    descriptor = os.open(path, os.O_RDWR)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield "held"
    os.close(descriptor)


def test_a_job_is_running_while_its_lock_is_held(tmp_path: Path) -> None:
    assert not is_running(tmp_path, "a")
    with job_lock(tmp_path, "a"):
        assert is_running(tmp_path, "a")
        assert not is_running(tmp_path, "b")
        assert (tmp_path / "locks" / "a.lock").read_text().startswith(f"{os.getpid()},")
    assert not is_running(tmp_path, "a")


def test_a_second_run_of_a_job_is_refused_with_the_process_of_the_first(tmp_path: Path, held_job: str) -> None:
    with pytest.raises(Locked) as caught, job_lock(tmp_path, held_job):
        pass
    assert str(caught.value) == (
        "held: another run of this job is under way (process 4711); "
        "wait for its end, or look at it with: rowmill status"
    )
    assert caught.value.exit_code == 4


def test_a_lock_can_be_acquired_again_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="broken"), job_lock(tmp_path, "a"):
        raise ValueError("broken")
    with job_lock(tmp_path, "a"):
        assert is_running(tmp_path, "a")


def test_two_jobs_cannot_write_to_one_sink_at_a_time(tmp_path: Path) -> None:
    with sink_lock(tmp_path, "/out", "a"), sink_lock(tmp_path, "/other", "b"):
        with pytest.raises(Locked) as caught, sink_lock(tmp_path, "/out", "b"):
            pass
        assert str(caught.value) == (
            f"b: another job is writing to the same sink, /out (job a, process {os.getpid()}); "
            "wait for its end, and give each job a separate sink"
        )


def test_a_location_that_is_not_utf_8_can_be_locked(tmp_path: Path) -> None:
    with sink_lock(tmp_path, os.fsdecode(b"/out-\xff"), "a"):
        pass


def test_the_writers_of_a_run_on_ray_have_a_separate_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for_ray_writers(tmp_path, "a")
    monkeypatch.setattr(locks, "RAY_WRITERS_SECONDS", 0.0)
    alive = "Ray workers of an earlier run are still alive"
    with ray_writer_lock(tmp_path, "a"), job_lock(tmp_path, "a"), pytest.raises(Locked, match=alive):
        wait_for_ray_writers(tmp_path, "a")
    wait_for_ray_writers(tmp_path, "a")
