"""Scratch folders, and the leftovers of processes that were killed."""

import os
import subprocess
import sys
from pathlib import Path

from pipelines.runtime.scratch_dir import scratch_folder


def dead_pid() -> int:
    """The process id of a process that has ended."""
    child = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    return int(child.stdout)


def test_a_scratch_folder_is_removed_with_its_files(tmp_path: Path) -> None:
    with scratch_folder(tmp_path) as folder:
        (folder / "file").write_text("x")
        assert folder.parent == tmp_path
    assert not folder.exists()


def test_folders_of_dead_processes_are_removed_and_those_of_living_ones_are_not(tmp_path: Path) -> None:
    (tmp_path / "scratch-dead").mkdir()
    (tmp_path / "scratch-dead" / "file").write_text("x")
    with scratch_folder(tmp_path) as first, scratch_folder(tmp_path) as second:
        assert sorted(tmp_path.glob("scratch-*")) == sorted((first, second))


def test_unfinished_files_of_dead_processes_are_removed(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    names = [f"a.{dead_pid()}.part", f"media/b.{dead_pid()}.part", f"c.{os.getpid()}.part", "d.other.part"]
    for name in names:
        (tmp_path / name).write_text("x")
    with scratch_folder(tmp_path):
        assert [name for name in names if (tmp_path / name).exists()] == names[2:]


def test_a_leftover_that_cannot_be_removed_does_not_stop_the_run(tmp_path: Path) -> None:
    (tmp_path / f"folder.{dead_pid()}.part").mkdir()
    (tmp_path / "scratch-link").symlink_to(tmp_path / "nowhere")
    with scratch_folder(tmp_path) as folder:
        assert folder.is_dir()
