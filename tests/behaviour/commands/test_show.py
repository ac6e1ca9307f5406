"""`rowmill show`: rows of steps that read files."""

import json
import shutil
from pathlib import Path

import pytest

from tests.conftest import Cli, Workspace

DATA = Path("jobs/data")


@pytest.mark.parametrize(
    ("file", "step"),
    [
        ("audio/austen_0880.mp3", "endpoint: transcription, model: whisper-1, file: file"),
        ("images/coffee_square.png", "endpoint: image_variation, model: dall-e-2, image: file, size: 256x256"),
        (
            "images/coffee.png",
            "endpoint: chat, model: gpt-4o-mini, messages: [{user: [{image: file}, {text: What is it?}]}]",
        ),
    ],
    ids=["audio", "picture", "vision"],
)
def test_the_request_and_the_reply_of_a_step_that_reads_a_file_are_shown(
    workspace: Workspace, cli: Cli, file: str, step: str
) -> None:
    name = Path(file).name
    shutil.copy(DATA / file, workspace.folder / name)
    workspace.write("rows.csv", f"id,file\n1,{name}\n")
    job = workspace.job(steps=f"[{{name: seen, provider: local, {step}}}]")
    assert cli.run(job)["exit_code"] == 0
    assert cli("show", job, "1", "--json") == 0, cli.err
    (shown,) = json.loads(cli.out)["steps"]
    assert (shown["error"], shown["request"]["model"]) == (None, step.split("model: ")[1].split(",")[0])
    assert shown["reply"]
    (workspace.folder / name).unlink()
    assert cli("show", job, "1", "--json") == 0, cli.err
    (shown,) = json.loads(cli.out)["steps"]
    assert (shown["request"], name in shown["why"]) == (None, True)


def test_a_file_behind_a_url_is_not_fetched_again(workspace: Workspace, cli: Cli) -> None:
    workspace.write("rows.csv", "id,file\n1,http://127.0.0.1:9/a.mp3\n")
    job = workspace.job(steps="[{name: seen, provider: local, endpoint: transcription, model: whisper-1, file: file}]")
    assert cli("show", job, "1", "--json") == 0, cli.err
    (shown,) = json.loads(cli.out)["steps"]
    assert shown["why"] == "file: the file is behind a URL, and is not fetched again; see exchanges"
