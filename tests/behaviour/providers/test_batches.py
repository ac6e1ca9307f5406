"""Batches and files of a provider with another name of the model, and a key that is refused at first."""

import json
import sys
from typing import Any

from connectors.emulator.server import EmulatorOptions, EmulatorServer
from tests.behaviour.providers.test_key_commands import ROTATION


def test_a_batch_renews_its_key_and_sends_the_providers_name_of_the_model(
    workspace: Any, cli: Any, read: Any, monkeypatch: Any
) -> None:
    with EmulatorServer(EmulatorOptions(api_key="rotated-key-xx")) as server:
        workspace.write("key.py", ROTATION)
        entry = {
            "base_url": server.base_url,
            "api_key_command": f"{sys.executable} key.py",
            "models": {"m": "rowmill-sentiment"},
        }
        workspace.write("rowmill.yaml", f"providers: {{test: {json.dumps(entry)}}}\n")
        workspace.csv(3)
        job = workspace.job(delivery="batch")
        report = cli.run(job)
        assert (report["exit_code"], report["rows_ok"], report["stopped"]) == (0, 3, None)
        usage = read(workspace.folder / "out", "usage")
        assert {(row["model"], row["model_version"]) for row in usage} == {("m", "rowmill-sentiment")}
        assert (workspace.folder / "runs").read_text() == "xx"
        monkeypatch.chdir(workspace.folder)
        for command in ("files", "batches", "models"):
            (workspace.folder / "runs").write_text("x")
            assert cli(command, "list", "--provider", "test") == 0, cli.err
