"""Without the extras: chat and embeddings of the embedded provider work, sound and pictures name the extra."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from connectors import optional_packages
from tests.behaviour.jobs.test_jobs import JOBS, copy_of
from tests.conftest import Cli

EXTRA_PACKAGES = (
    "altair",
    "av",
    "fsspec",
    "lxml",
    "numpy",
    "obstore",
    "pandas",
    "PIL",
    "pypdfium2",
    "ray",
    "wordllama",
)


def without_extras(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run the command in a process that finds none of the packages."""
    code = (
        f"import sys; sys.modules.update(dict.fromkeys({EXTRA_PACKAGES!r}))\n"
        "from pipelines.cli import main; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_chat_embeddings_and_reports_need_no_extra(tmp_path: Path) -> None:
    folder = copy_of(JOBS, tmp_path)
    ran = without_extras("run", "two-steps.yaml", "--limit", "40", "--json", "--quiet", folder=folder)
    report = orjson.loads(ran.stdout)
    assert (report["rows_ok"], report["exit_code"], ran.stderr) == (40, 0, "")
    shown = without_extras("report", "two-steps.yaml", folder=folder)
    assert (shown.returncode, shown.stderr) == (0, "")


@pytest.mark.parametrize("job", ["speech", "vision", "image-edit", "image-generation", "image-variation"])
def test_the_embedded_provider_names_the_extra_for_sound_and_pictures(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str
) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda package: None)
    assert cli("run", str(copy_of(JOBS, tmp_path) / f"{job}.yaml"), "--quiet") == 3
    assert "setup: local says" in cli.err and "pip install 'rowmill[media]'" in cli.err


def test_a_step_that_reads_recordings_names_the_extra(
    cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(optional_packages, "find_spec", lambda package: None)
    assert cli("run", str(copy_of(JOBS, tmp_path) / "transcription.yaml"), "--quiet") == 2
    assert cli.err.endswith(
        "transcription.yaml:13: steps.heard.file: needs the packages that read recordings; "
        "pip install 'rowmill[media]'\n"
    )
